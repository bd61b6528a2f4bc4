"""IDX files, the format of MNIST and its relatives, plain or gzip-compressed.

A file is two zero bytes, a type byte, the number of dimensions, each size as a big-endian 32-bit integer, and the raw
values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from holdfast.core.errors import InputError

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """The array in an IDX file (gzip by its name), in native byte order.

    Raises InputError when the file is missing, is not IDX, or holds fewer or more bytes than its heading says.
    """
    raw = _bytes(Path(path))
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES:
        raise InputError(f"{path}: not an IDX file (it must begin with 00 00, a type and the number of dimensions)")
    kind, dimensions = np.dtype(_TYPES[raw[2]]), raw[3]
    heading = 4 + 4 * dimensions
    if len(raw) < heading:
        raise InputError(f"{path}: ends inside its heading; the file is truncated, fetch it again")
    shape = struct.unpack(f">{dimensions}I", raw[4:heading])
    wanted = math.prod(shape) * kind.itemsize
    if len(raw) - heading != wanted:
        raise InputError(
            f"{path}: its heading promises {shape}, {wanted} bytes, but {len(raw) - heading} follow; "
            f"the file is {'truncated' if len(raw) - heading < wanted else 'damaged'}, fetch it again"
        )
    return np.frombuffer(raw, kind, offset=heading).reshape(shape).astype(kind.newbyteorder("="))


def _bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: the gzip stream is damaged or truncated ({error}); fetch it again") from error
