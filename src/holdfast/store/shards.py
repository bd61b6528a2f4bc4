"""Evidence in Parquet: named columns of arrays, a file a shard."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.core.errors import StorageError
from holdfast.store.files import Folder

_SHAPES = b"holdfast.shapes"


def shard_name(probe: str, shard: int) -> str:
    """Where shard number `shard` of `probe` lies in a run folder."""
    return f"evidence/{probe}/part-{shard:06d}.parquet"


def write_shard(folder: Folder, probe: str, shard: int, columns: Mapping[str, np.ndarray]) -> None:
    """Write the columns (equal first dimension) as one Parquet file, atomically."""
    arrays, shapes = [], {}
    for name, values in columns.items():
        values = np.asarray(values)
        shapes[name] = list(values.shape[1:])
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        width = int(np.prod(values.shape[1:], dtype=int))
        arrays.append(flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, width))
    table = pa.table(dict(zip(columns, arrays))).replace_schema_metadata({_SHAPES: json.dumps(shapes)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    folder.write(shard_name(probe, shard), sink.getvalue())


def read_shard(folder: Folder, probe: str, shard: int) -> dict[str, np.ndarray]:
    """Columns of one shard.  Raises StorageError when the file is absent or not readable Parquet."""
    name = shard_name(probe, shard)
    content = folder.read(name)
    try:
        table = pq.read_table(io.BytesIO(content))
        shapes = json.loads(table.schema.metadata[_SHAPES])
        return {column: _column(table.column(column), shapes[column]) for column in table.column_names}
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{folder.path(name)} is damaged ({error}); delete that file and run again with --resume"
        ) from error


def _column(column: pa.ChunkedArray, shape: list[int]) -> np.ndarray:
    rows = len(column)
    flat = column.combine_chunks()
    if shape:
        flat = flat.flatten()
    values = flat.to_numpy(zero_copy_only=False)
    return values.reshape(rows, *shape) if shape else values


def shards_present(folder: Folder, probe: str) -> list[int]:
    """Numbers of the shards that are whole, ascending."""
    names = folder.names(f"evidence/{probe}")
    return sorted(int(name[5:-8]) for name in names if name.startswith("part-") and name.endswith(".parquet"))


def read_evidence(folder: Folder, probe: str) -> dict[str, np.ndarray]:
    """All shards of a probe, joined in order; no columns when there are none."""
    parts = [read_shard(folder, probe, shard) for shard in shards_present(folder, probe)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
