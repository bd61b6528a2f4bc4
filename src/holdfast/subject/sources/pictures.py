"""Data from files of pictures: IDX pairs and folders with one subfolder a class.

IDX: `…/t10k` finds `t10k-images-idx3-ubyte(.gz)` and `t10k-labels-idx1-ubyte(.gz)`; a folder that holds one such pair
will
do.  Image folder: classes are the subfolders in sorted order, pictures are decoded when asked for and kept while they
fit
in `KEPT_BYTES`; they must be of one size, or the size is asked for: `folder:HEIGHTxWIDTH` (bilinear, aspect not kept).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from holdfast.core.errors import InputError
from holdfast.subject.fingerprint import file_digest
from holdfast.subject.idx import read_idx
from holdfast.subject.sources.examples import Examples, Range, Reading, image_examples, label_array

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
KEPT_BYTES = 1 << 30
DIGESTED_BYTES = 1 << 31
GREY_MODES = frozenset({"1", "L", "LA"})
DEEP_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "F"})


def idx_pair(prefix: Path) -> tuple[Path, Path] | None:
    """The files of images and labels that `prefix` (a path prefix or a folder with one pair) names, if any."""
    folder, stem = (prefix, "") if prefix.is_dir() else (prefix.parent, prefix.name)
    if not folder.is_dir():
        return None
    pattern = re.compile(re.escape(stem) + r".*images[-.]idx\d-ubyte(\.gz)?$")
    images = sorted(path for path in folder.iterdir() if pattern.match(path.name))
    stems = {re.sub(r"\.gz$", "", path.name) for path in images}
    if len(stems) > 1:
        raise InputError(
            f"{prefix}: several sets begin so ({', '.join(sorted(stems))}); name one, for example {folder}/t10k"
        )
    if not images:
        return None
    labels = [
        folder / re.sub(r"images([-.])idx\d", r"labels\1idx1", name)
        for name in (images[0].name, f"{images[0].name}.gz", images[0].name.removesuffix(".gz"))
    ]
    found = next((path for path in labels if path.exists()), None)
    if found is None:
        raise InputError(f"{images[0]}: its labels are missing ({labels[0].name} was looked for beside it)")
    return images[0], found


def idx_examples(pair: tuple[Path, Path], source: str, reading: Reading) -> Examples:
    """Images (n, h, w) or (n, h, w, c) with labels (n,)."""
    images, labels = read_idx(pair[0]), read_idx(pair[1])
    if images.ndim not in (3, 4):
        raise InputError(f"{pair[0]}: holds {images.ndim} dimensions; images (n, height, width) were wanted")
    if len(images) == 0:
        raise InputError(f"{pair[0]}: holds no examples")
    known = label_array(labels, str(pair[1]))
    if len(known) != len(images):
        raise InputError(
            f"{source}: {len(images)} images but {len(known)} labels; the two files do not belong together"
        )
    return image_examples(images, known if reading.labelled else None, source, reading)


@dataclass(frozen=True)
class ImageFiles:
    """Pictures in files, decoded when taken: (n, channels, height, width) float32 in `valid`."""

    paths: tuple[Path, ...]
    channels: int
    size: tuple[int, int]
    resized: bool
    valid: Range = (0.0, 1.0)
    _kept: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.paths), self.channels, *self.size

    def take(self, positions: Int[np.ndarray, " batch"]) -> Float[np.ndarray, "batch ..."]:
        low, high = self.valid
        pixels = np.stack([self._pixels(int(position)) for position in positions]).astype(np.float32)
        return pixels * np.float32((high - low) / 255) + np.float32(low)

    def content_digest(self) -> str:
        """Names and sizes of all files, and the bytes of as many (evenly spread) as make two gigabytes."""
        sizes = [path.stat().st_size for path in self.paths]
        step = -(-sum(sizes) // DIGESTED_BYTES)
        digest = hashlib.blake2b(repr((self.channels, self.size, self.resized, self.valid)).encode(), digest_size=16)
        for k, (path, size) in enumerate(zip(self.paths, sizes, strict=True)):
            content = file_digest(path) if k % step == 0 else ""
            digest.update(repr((path.parent.name, path.name, size, content)).encode())
        return digest.hexdigest()

    def _pixels(self, position: int) -> np.ndarray:
        if position in self._kept:
            return self._kept[position]
        from PIL import Image

        path = self.paths[position]
        try:
            with Image.open(path) as image:
                picture = image.convert("L" if self.channels == 1 else "RGB")
                if self.resized:
                    picture = picture.resize(self.size[::-1], Image.Resampling.BILINEAR)
                pixels = np.asarray(picture, dtype=np.uint8)
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{path}: cannot be decoded as an image ({error})") from error
        pixels = pixels[None] if self.channels == 1 else np.moveaxis(pixels, -1, 0)
        if len(self._kept) * pixels.nbytes < KEPT_BYTES:
            self._kept[position] = pixels
        return pixels


def folder_examples(folder: Path, size: str | None, reading: Reading) -> Examples:
    """A folder with one subfolder of pictures a class; `size` is "HEIGHTxWIDTH", "SIDE" or None: as they are."""
    parts = sorted(part for part in folder.iterdir() if part.is_dir() and not part.name.startswith("."))
    classes = {part.name: _images_in(part) for part in parts}
    paths = tuple(path for files in classes.values() for path in files)
    if not paths and not reading.labelled:
        paths = tuple(_images_in(folder))
    if not paths:
        raise InputError(f"{folder}: no images in subfolders; one subfolder of images a class was wanted")
    channels, height, width = _common_shape(paths, size)
    inputs = ImageFiles(paths, channels, (height, width), size is not None, reading.input_range or (0.0, 1.0))
    labels = np.array([name for name, files in classes.items() for _ in files])
    names = tuple(name for name, files in classes.items() if files)
    known = labels if reading.labelled else None
    return Examples(inputs, known, str(folder), "image", names if reading.labelled else None, valid=inputs.valid)


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _common_shape(paths: tuple[Path, ...], size: str | None) -> tuple[int, int, int]:
    """Channels, height and width of all pictures, from their headings alone."""
    from PIL import Image

    shapes: dict[tuple[int, int], Path] = {}
    grey = True
    for path in paths:
        try:
            with Image.open(path) as image:
                shapes.setdefault((image.height, image.width), path)
                if image.mode in DEEP_MODES:
                    raise InputError(f"{path}: has more than 8 bits a channel; save such images as floats in an .npz")
                grey = grey and image.mode in GREY_MODES
        except InputError:
            raise
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{path}: is not an image that can be read ({error})") from error
    channels = 1 if grey else 3
    if size is not None:
        return channels, *_size(size)
    if len(shapes) > 1:
        (first, a), (second, b) = list(shapes.items())[:2]
        raise InputError(
            f"images differ in size ({a.name} is {first[0]}x{first[1]}, {b.name} is {second[0]}x{second[1]}); "
            "ask for one: FOLDER:HEIGHTxWIDTH"
        )
    return channels, *next(iter(shapes))


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None or int(match[1]) == 0 or match[2] == "0":
        raise InputError(f"the size of images must be HEIGHTxWIDTH or SIDE in pixels, got {text!r}")
    return int(match[1]), int(match[2] or match[1])
