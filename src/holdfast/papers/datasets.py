"""Data sets for checks and benchmarks, found on this machine; nothing is downloaded and none is shipped.

The folder is named by the environment variable HOLDFAST_DATA, or lies at `../shared/data` beside the repository or the
working directory.  Images come as float32 in [0, 1] of shape (n, channels, height, width), labels as int64 of shape
(n,); texts as small records.  Rows keep the order of the source, so `limit` always names the same examples.  Every
reader raises MissingData, saying what to set, when the folder or the file is not there; `digits`, bundled with
scikit-learn, is always there.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from holdfast.core.errors import InputError, MissingData
from holdfast.subject.idx import read_idx

Split = Literal["train", "test"]
Images = Float[np.ndarray, "examples channels height width"]
Labels = Int[np.ndarray, " examples"]

VARIABLE = "HOLDFAST_DATA"
_IDX_PREFIX = {"train": "train", "test": "t10k"}
_TABLE_TARGETS = {
    "abalone": ("tabular/abalone.csv.gz", "rings"),
    "adult-train": ("tabular/adult_train.csv.gz", "income"),
    "adult-test": ("tabular/adult_test.csv.gz", "income"),
    "compas": ("tabular/compas_two_years.csv.gz", "two_year_recid"),
    "german-credit": ("tabular/german_credit.csv", "class"),
    "ionosphere": ("tabular/ionosphere.csv.gz", "class"),
    "mammography": ("tabular/mammography.csv.gz", "class"),
    "musk1": ("tabular/musk1_mil.csv.gz", "class"),
    "oil-spill": ("tabular/oil_spill.csv.gz", "class"),
    "phoneme": ("tabular/phoneme.csv.gz", "class"),
    "pima": ("tabular/pima-indians-diabetes.csv.gz", "class"),
    "sonar": ("tabular/sonar.csv.gz", "class"),
    "wine-quality": ("tabular/wine_quality.csv.gz", "quality"),
}


def data_folder() -> Path | None:
    """The folder of shared data sets, or None when there is none on this machine.

    Raises MissingData when HOLDFAST_DATA is set and is not a folder: a misspelt path must not pass for an absent one.
    """
    named = os.environ.get(VARIABLE)
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise MissingData(
                f"{VARIABLE} is set to {named}, which is not a folder; set it to the folder that holds fashion-mnist/"
            )
        return folder
    repository = Path(__file__).resolve().parents[3]
    for beside in (repository, Path.cwd()):
        folder = beside.parent / "shared" / "data"
        if folder.is_dir():
            return folder
    return None


def data_path(relative: str) -> Path:
    """Path of one file of the shared data, for example "dsl/panchen.csv".  Raises MissingData when it is not there."""
    folder = data_folder()
    if folder is None:
        raise MissingData(
            f"{relative} is not on this machine: no folder of data sets was found; "
            f"set {VARIABLE} to the folder that holds it"
        )
    path = folder / relative
    if not path.exists():
        raise MissingData(f"{relative} is not in the data folder; set {VARIABLE} to a folder that holds it")
    return path


def fashion_mnist(split: Split, limit: int | None = None) -> tuple[Images, Labels]:
    """Fashion-MNIST, (n, 1, 28, 28): 60 000 training or 10 000 test images of ten kinds of clothing."""
    return _idx_pair("fashion-mnist", split, limit)


def mnist(split: Split, limit: int | None = None) -> tuple[Images, Labels]:
    """MNIST digits, (n, 1, 28, 28): the first 55 000 training or 8 000 test images."""
    return _idx_pair("mnist", split, limit)


def notmnist(limit: int | None = None) -> tuple[Images, Labels]:
    """5 000 letters A to J in public fonts, (n, 1, 28, 28): foreign data for models of digits or clothing."""
    arrays = _npz("notmnist/notmnist_5k.npz")
    return _pixels(arrays["x"][:, None], limit), _labels(arrays["y"], limit)


def cifar10(split: Split, limit: int | None = None, *, jpeg: bool = False) -> tuple[Images, Labels]:
    """CIFAR-10, (n, 3, 32, 32): 10 000 training images or 1 000 exact test images.

    `jpeg=True` adds 2 000 test images that were decoded from JPEG copies (mean error about 6 of 255): good enough to
    train or score on, not for exact comparisons of attacks.
    """
    if split == "train":
        if jpeg:
            raise InputError("jpeg=True was asked of the training split, whose images are all exact; leave it out")
        parts = [_npz("cifar10/cifar10_train_0_9999.npz")]
    else:
        names = ["cifar10_test_0_999.npz"] + (["cifar10_test_1000_2999_jpeg.npz"] if jpeg else [])
        parts = [_npz(f"cifar10/{name}") for name in names]
    x = np.concatenate([part["x"] for part in parts])
    y = np.concatenate([part["y"] for part in parts])
    return _pixels(x, limit), _labels(y, limit)


def omniglot(limit: int | None = None) -> tuple[Images, Labels]:
    """4 840 handwritten characters of 242 kinds, (n, 1, 28, 28), ink = 1."""
    arrays = _npz("omniglot/omniglot_small_28.npz")
    return _pixels(arrays["x"][:, None], limit), _labels(arrays["character"], limit)


def traffic_signs(limit: int | None = None) -> tuple[Images, Labels]:
    """1 307 German traffic signs of 43 kinds, (n, 3, 32, 32)."""
    arrays = _npz("gtsrb/gtsrb_1307_32.npz")
    return _pixels(arrays["x"], limit), _labels(arrays["label"], limit)


def digits(limit: int | None = None) -> tuple[Images, Labels]:
    """scikit-learn's 1 797 digits, (n, 1, 8, 8), always at hand."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images[:limit, None] / 16.0).astype(np.float32), _labels(bunch.target, limit)


@dataclass(frozen=True)
class Table:
    """A named table: numeric columns are float64, text columns are strings; `target` is the column to predict."""

    name: str
    columns: Mapping[str, np.ndarray]
    target: str

    def __len__(self) -> int:
        return len(self.columns[self.target])

    def features(self) -> tuple[Float[np.ndarray, "rows features"], tuple[str, ...]]:
        """Every column but the target as numbers, with names; a text column becomes one 0/1 column a sorted level."""
        blocks, names = [], []
        for name, column in self.columns.items():
            if name == self.target:
                continue
            if column.dtype.kind == "f":
                blocks.append(column[:, None])
                names.append(name)
            else:
                levels = np.unique(column)
                blocks.append((column[:, None] == levels).astype(np.float64))
                names.extend(f"{name}={level}" for level in levels)
        return np.concatenate(blocks, axis=1), tuple(names)

    def labels(self) -> tuple[Labels, tuple[str, ...]]:
        """Class indices of the target and the class names, in sorted order of the values."""
        levels, index = np.unique(self.columns[self.target], return_inverse=True)
        names = [str(int(level)) if isinstance(level, float) and level.is_integer() else str(level) for level in levels]
        return index.astype(np.int64), tuple(names)


@dataclass(frozen=True)
class MathProblem:
    """A word problem; `solution` has one reasoning step a line with the calculator's marks <<...>> taken out, and
    `result` is the final number as it is written.
    """

    question: str
    solution: str
    result: str

    @property
    def steps(self) -> tuple[str, ...]:
        """The reasoning steps, one sentence or equation each."""
        return tuple(line for line in self.solution.split("\n") if line.strip())


@dataclass(frozen=True)
class CodeTask:
    """A function to be written: `prompt` ends with its docstring, `solution` is a body that passes `test`."""

    name: str
    prompt: str
    solution: str
    test: str
    entry_point: str

    @property
    def description(self) -> str:
        """The words of the docstring, without the examples that may follow them."""
        function = self.prompt[self.prompt.rfind(f"def {self.entry_point}(") :].replace("'''", '"""')
        examples = rf'"""|>>>|\n\s*(?:for )?examples?\b|{self.entry_point}\('
        text = re.split(examples, function.partition('"""')[2], maxsplit=1, flags=re.IGNORECASE)[0]
        return " ".join(text.split())


def gsm8k(split: Split, limit: int | None = None) -> tuple[MathProblem, ...]:
    """GSM8K: 7 473 training or 1 319 test word problems of primary-school arithmetic with worked solutions."""
    if split not in ("train", "test"):
        raise InputError(f"the split must be 'train' or 'test', got {split!r}")
    problems = []
    for record in _json_lines(f"code-and-math-text/gsm8k_{split}.jsonl.gz", limit):
        solution, _, result = str(record["answer"]).partition("\n#### ")
        problems.append(MathProblem(record["question"], re.sub(r"<<.*?>>", "", solution), result.strip()))
    return tuple(problems)


def human_eval(limit: int | None = None) -> tuple[CodeTask, ...]:
    """HumanEval: 164 Python functions to be written from a signature and a docstring."""
    return tuple(
        CodeTask(r["task_id"], r["prompt"], r["canonical_solution"], r["test"], r["entry_point"])
        for r in _json_lines("code-and-math-text/HumanEval.jsonl.gz", limit)
    )


def tables() -> tuple[str, ...]:
    """Names that `table` knows."""
    return tuple(sorted(_TABLE_TARGETS))


def table(name: str) -> Table:
    """One of the shared tables by name (see `tables`).  Raises InputError on an unknown name."""
    if name not in _TABLE_TARGETS:
        raise InputError(f"no table is called {name!r}; the tables are: {', '.join(tables())}")
    relative, target = _TABLE_TARGETS[name]
    return Table(name, csv_columns(data_path(relative)), target)


def csv_columns(path: Path) -> dict[str, np.ndarray]:
    """Columns of a CSV file with a heading: float64 where every cell is a number or empty, else strings."""
    import pyarrow as pa
    from pyarrow import csv

    read = csv.read_csv(path)
    columns: dict[str, np.ndarray] = {}
    for name, column in zip(read.column_names, read.columns, strict=True):
        numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        columns[name] = column.cast(pa.float64() if numeric else pa.string()).to_numpy(zero_copy_only=False)
        if not numeric:
            columns[name] = columns[name].astype(str)
    return columns


def _idx_pair(folder: str, split: Split, limit: int | None) -> tuple[Images, Labels]:
    if split not in _IDX_PREFIX:
        raise InputError(f"the split must be 'train' or 'test', got {split!r}")
    prefix = _IDX_PREFIX[split]
    x = read_idx(data_path(f"{folder}/{prefix}-images-idx3-ubyte.gz"))
    y = read_idx(data_path(f"{folder}/{prefix}-labels-idx1-ubyte.gz"))
    return _pixels(x[:, None], limit), _labels(y, limit)


def _json_lines(relative: str, limit: int | None) -> list[dict[str, Any]]:
    with gzip.open(data_path(relative), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, limit)]


def _npz(relative: str) -> dict[str, np.ndarray]:
    with np.load(data_path(relative), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _pixels(raw: np.ndarray, limit: int | None) -> Images:
    return raw[:limit].astype(np.float32) / np.float32(255)


def _labels(raw: np.ndarray, limit: int | None) -> Labels:
    return raw[:limit].astype(np.int64)
