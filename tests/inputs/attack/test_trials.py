"""Published trials of human observers: columns, trials without an answer, and both formats of file."""

import sys

import numpy as np
import pytest
from scipy.io import savemat

from holdfast.core.errors import InputError, MissingDependency
from holdfast.inputs.attack.trials import read_trials

NEW = b"MATLAB 7.3 MAT-file, Platform: GLNXA64"


def table(task, columns=16):
    """Two conditions at 5 degrees and one at 30; right, wrong, not shown and invalid answers."""
    condition, correct = (1, 11) if task == "2afc" else (2, 14)
    rows = np.full((7, columns), -1.0)
    rows[:, 0] = [1, 1, 1, 1, 6, 6, 1]
    rows[:, condition] = [1, 1, 1, 1, 2, 2, 2]
    rows[:, correct] = [1, 0, 1, -1, 1, np.nan, 0]
    return rows


@pytest.mark.parametrize("task", ["2afc", "oddity"])
def test_answers_are_read_by_condition_and_eccentricity(tmp_path, task):
    name = "AB_01_data1.mat" if task == "2afc" else "AB_01_oddity_data1.mat"
    savemat(tmp_path / name, {"full_condtable": table(task), "blocks": np.ones(3)})
    trials = read_trials([tmp_path / name])
    assert trials.task == task
    found = trials.accuracy("original, robust", 5.0)
    assert (found.value, found.n) == (pytest.approx(2 / 3), 3)
    assert (trials.accuracy("two robust", 30.0).value, trials.accuracy("two robust", 5.0).value) == (1, 0)
    both = read_trials([tmp_path / name, tmp_path / name])
    assert both.accuracy("original, robust", 5.0).n == 6


def test_the_second_set_of_stimuli_has_its_own_conditions(tmp_path):
    savemat(tmp_path / "AB_01_data2.mat", {"full_condtable": table("2afc")})
    assert read_trials([tmp_path / "AB_01_data2.mat"]).accuracy("original, texform", 5.0).n == 3


def test_the_newer_format_is_read_with_h5py(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "AB_01_oddity_data1.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["full_condtable"] = table("oddity").T
    with path.open("r+b") as file:
        file.write(NEW)
    assert read_trials([path]).accuracy("original, robust", 5.0).n == 3


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "AB_01_data1.mat"
    path.write_bytes(NEW)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependency, match=r"holdfast\[matlab\]"):
        read_trials([path])


def test_bad_input_is_told(tmp_path):
    savemat(tmp_path / "AB_01_data1.mat", {"full_condtable": table("2afc")})
    savemat(tmp_path / "AB_01_oddity_data1.mat", {"full_condtable": table("oddity")})
    savemat(tmp_path / "CD_02_data1.mat", {"blocks": np.ones(3)})
    savemat(tmp_path / "EF_03_data1.mat", {"full_condtable": np.ones((3, 4))})
    with pytest.raises(InputError, match="exactly one task"):
        read_trials([tmp_path / "AB_01_data1.mat", tmp_path / "AB_01_oddity_data1.mat"])
    with pytest.raises(InputError, match="no file"):
        read_trials([])
    with pytest.raises(InputError, match="must end in"):
        read_trials([tmp_path / "AB_01.mat"])
    with pytest.raises(InputError, match="is not a file"):
        read_trials([tmp_path / "GH_04_data1.mat"])
    with pytest.raises(InputError, match="full_condtable"):
        read_trials([tmp_path / "CD_02_data1.mat"])
    with pytest.raises(InputError, match="more than 11 columns"):
        read_trials([tmp_path / "EF_03_data1.mat"])
    with pytest.raises(InputError, match="no trial of"):
        read_trials([tmp_path / "AB_01_data1.mat"]).accuracy("original, robust", 10.0)
