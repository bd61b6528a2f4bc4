"""Trials of human observers, as the authors of the metameric tasks published them (Harrington & Deza, 2022).

One MATLAB file a participant, set of stimuli and task holds a table `full_condtable`, one row a trial:

    task       eccentricity  condition  correct     files
    2AFC       column 1      column 2   column 12   NAME_data1.mat, NAME_data2.mat
    oddity     column 1      column 3   column 15   NAME_oddity_data1.mat, NAME_oddity_data2.mat

The published files are of MATLAB 7.3 and need h5py.  Eccentricities 1 to 6 are 5 to 30 degrees; -1 marks a trial that
was not shown, NaN one without a valid answer.  In files "1" conditions 1 to 4 are original against robust, robust
against robust, original against standard, standard against standard; in files "2" 1 and 2 are original against texform,
texform against texform.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.io import loadmat

from holdfast.core.errors import InputError, MissingDependency
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson

Task = Literal["2afc", "oddity"]
_COLUMNS = {"2afc": (0, 1, 11), "oddity": (0, 2, 14)}
CONDITIONS = {
    1: ("original, robust", "two robust", "original, standard", "two standard"),
    2: ("original, texform", "two texform"),
}


@dataclass(frozen=True, eq=False)
class Trials:
    """Answered trials: eccentricity in degrees, condition in words, whether the answer was right."""

    task: Task
    eccentricity: Float[np.ndarray, " trials"]
    condition: Shaped[np.ndarray, " trials"]
    correct: Bool[np.ndarray, " trials"]

    def accuracy(self, condition: str, eccentricity: float, level: float = 0.95) -> Estimate:
        """Accuracy in one condition at one eccentricity, over trials.  Raises InputError where there are none."""
        chosen = (self.condition == condition) & (self.eccentricity == eccentricity)
        if not chosen.any():
            raise InputError(
                f"no trial of {condition!r} at {eccentricity} degrees; conditions are "
                f"{', '.join(sorted(set(self.condition.tolist())))}"
            )
        return clopper_pearson(int(self.correct[chosen].sum()), int(chosen.sum()), level)


def read_trials(paths: Iterable[str | Path]) -> Trials:
    """All answered trials of the files, which must be of one task; the names say task and set of stimuli.

    Raises InputError for a name that does not, files of two tasks, or a file without the table.
    """
    parts: list[np.ndarray] = []
    words: list[np.ndarray] = []
    tasks: set[Task] = set()
    for path in map(Path, paths):
        task, names = _kind(path)
        tasks.add(task)
        table = _table(path)
        columns = _COLUMNS[task]
        if table.ndim != 2 or table.shape[1] <= max(columns):
            raise InputError(f"{path.name}: a table of more than {max(columns)} columns was wanted, got {table.shape}")
        rows = table[:, columns].astype(np.float64)
        rows = rows[np.isin(rows[:, 2], (0, 1)) & np.isin(rows[:, 1], range(1, len(names) + 1))]
        parts.append(rows)
        words.append(np.array(names)[rows[:, 1].astype(np.int64) - 1])
    if len(tasks) != 1:
        raise InputError(f"files of exactly one task were wanted, got {', '.join(sorted(tasks)) or 'no file'}")
    rows = np.concatenate(parts)
    return Trials(tasks.pop(), 5.0 * rows[:, 0], np.concatenate(words), rows[:, 2] == 1)


def _kind(path: Path) -> tuple[Task, tuple[str, ...]]:
    for number, names in CONDITIONS.items():
        if path.stem.endswith(f"_data{number}"):
            return ("oddity" if path.stem.endswith(f"_oddity_data{number}") else "2afc"), names
    raise InputError(f"{path.name}: the name must end in _data1, _data2, _oddity_data1 or _oddity_data2")


def _table(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path} is not a file")
    # MATLAB 7.3 files are HDF5 behind a header of text, which says so.
    newer = path.read_bytes()[:19] == b"MATLAB 7.3 MAT-file"
    content = _columns_first(path) if newer else loadmat(path)
    if "full_condtable" not in content:
        raise InputError(f"{path.name} holds no table 'full_condtable'; is it a file of subject_data?")
    return np.asarray(content["full_condtable"])


def _columns_first(path: Path) -> dict[str, np.ndarray]:
    """The numeric table of a MATLAB 7.3 file, which stores arrays transposed."""
    try:
        import h5py
    except ImportError as error:
        raise MissingDependency.of("h5py", "matlab", f"reading {path.name}, a MATLAB 7.3 file,") from error
    with h5py.File(path, "r") as file:
        return {name: file[name][()].T for name in ("full_condtable",) if name in file}
