"""Property files are read as the competition reads them."""

import gzip
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.inputs.bounds.vnnlib import Property
from holdfast.papers.datasets import data_folder
from holdfast.threats import Linf

HEAD = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)\n"
BOX = "(assert (<= X_0 1))(assert (>= X_0 -1))(assert (<= X_1 2.5))(assert (>= X_1 0))\n"


def read(tmp_path, text):
    path = tmp_path / "p.vnnlib"
    path.write_text(text)
    return Property.from_vnnlib(path)


def test_a_box_and_a_halfspace(tmp_path):
    (part,) = read(tmp_path, HEAD + BOX + "; unsafe if\n(assert (>= Y_0 (+ Y_1 0.5)))").disjuncts
    np.testing.assert_array_equal(part.lower, [-1, 0])
    np.testing.assert_array_equal(part.upper, [1, 2.5])
    np.testing.assert_array_equal(part.matrix, [[-1, 1]])
    np.testing.assert_array_equal(part.offset, [-0.5])


def test_disjunctions_of_inputs_and_outputs_multiply(tmp_path):
    text = (
        HEAD
        + "(assert (or (and (<= X_0 1) (>= X_0 0)) (and (<= X_0 3) (>= X_0 2))))"
        + "(assert (and (<= X_1 1) (>= X_1 0)))"
        + "(assert (or (<= Y_0 Y_1) (and (<= Y_0 0) (<= Y_1 0)) (= Y_0 7)))"
    )
    parts = read(tmp_path, text).disjuncts
    assert len(parts) == 6
    assert sorted(len(part.offset) for part in parts) == [1, 1, 2, 2, 2, 2]


def test_an_empty_box_can_hold_no_counterexample(tmp_path):
    assert read(tmp_path, HEAD + BOX + "(assert (>= X_0 5))(assert (<= Y_0 0))").disjuncts == ()


@given(st.lists(st.floats(-2, 3), min_size=4, max_size=4))
def test_violated_agrees_with_the_formula(tmp_path_factory, numbers):
    x0, x1, y0, y1 = numbers
    prop = read(tmp_path_factory.mktemp("p"), HEAD + BOX + "(assert (or (<= (* 2 Y_0) (- Y_1 1)) (>= Y_1 2)))")
    expected = -1 <= x0 <= 1 and 0 <= x1 <= 2.5 and (2 * y0 <= y1 - 1 or y1 >= 2)
    margin = min(abs(2 * y0 - y1 + 1), abs(y1 - 2))
    if margin > 1e-12:
        assert prop.violated(np.array([[x0, x1]]), np.array([[y0, y1]]))[0] == expected


@pytest.mark.parametrize(("family", "files"), [("acasxu", 6), ("mnist_fc", 1), ("rl", 9)])
def test_files_say_what_the_published_arrays_say(family, files):
    folder = data_folder()
    if folder is None or not (folder / "vnncomp").exists():
        pytest.skip("the VNN-COMP instances are not on this machine")
    compared = set()
    for arrays in sorted((folder / "vnncomp" / family).glob("specs_*.npz")):
        with np.load(arrays) as table:
            specs = {name: table[name] for name in table.files}
        for path in sorted((folder / "vnncomp" / family / "vnnlib").glob("*.vnnlib.gz")):
            matching = np.flatnonzero(specs["spec"] == path.name.removesuffix(".gz"))
            if len(matching):
                assert_same(Property.from_vnnlib(path), specs, int(matching[0]))
                compared.add(path.name)
    assert len(compared) >= files


def assert_same(prop, specs, instance):
    def key(part):
        return tuple(np.concatenate([part[0], part[1], *part[2], part[3]]).tolist())

    published = []
    for d in np.flatnonzero(specs["disj_instance"] == instance):
        rows = specs["row_disj"] == d
        box = specs["disj_box"][d]
        published.append((specs["box_lower"][box], specs["box_upper"][box], specs["row_A"][rows], specs["row_b"][rows]))
    ours = [(part.lower, part.upper, part.matrix, part.offset) for part in prop.disjuncts]
    assert len(ours) == len(published)
    for mine, theirs in zip(sorted(ours, key=key), sorted(published, key=key), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(assert (<= X_0 1))", "not declared"),
        (HEAD + "(assert (<= X_0 1)", "truncated"),
        (HEAD + BOX + "(assert (<= Y_0 1)))", "parenthesis too many"),
        (HEAD + "(assert (<= X_0 1))", "no lower or no upper bound"),
        (HEAD + BOX + "(assert (<= (+ X_0 Y_0) 1))", "inputs or of outputs"),
        (HEAD + BOX + "(assert (<= (+ X_0 X_1) 1))", "ties 2 inputs"),
        (HEAD + BOX + "(assert (<= (* Y_0 Y_1) 1))", "must be linear"),
        (HEAD + BOX + "(assert (<= Y_7 1))", "Y_7 is used but was not declared"),
        (HEAD + BOX + "(assert (<= Y_0 nan))", "not finite"),
        (HEAD + BOX + "(assert (<= Y_0 many))", "neither a number"),
        (HEAD + BOX + "(assert (xor Y_0 Y_1))", "wanted and, or"),
        (HEAD + "(check-sat)", "cannot read the statement"),
        ("(declare-const X_1 Real)(declare-const Y_0 Real)", "without gaps"),
    ],
)
def test_files_that_are_not_properties_say_why(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        read(tmp_path, text)


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "p.vnnlib.gz"
    path.write_bytes(gzip.compress(b"(assert true)" * 100)[:-12])
    with pytest.raises(InputError, match=r"p\.vnnlib\.gz: cannot be read"):
        Property.from_vnnlib(path)


def test_properties_that_multiply_or_nest_without_end_are_refused(tmp_path):
    many = "".join(f"(assert (or (>= Y_0 {k}) (>= Y_1 {k})))" for k in range(40))
    with pytest.raises(InputError, match="cases"):
        read(tmp_path, HEAD + BOX + many)
    inside = " ".join(f"(or (>= Y_0 {k}) (>= Y_1 {k}))" for k in range(40))
    with pytest.raises(InputError, match="cases"):
        read(tmp_path, HEAD + BOX + f"(assert (and {inside}))")
    with pytest.raises(InputError, match="nest"):
        read(tmp_path, HEAD + BOX + "(assert " + "(and " * 5000 + "(>= Y_0 0)" + ")" * 5001)


def test_a_margins_box_holds_the_exact_ball():
    x, eps = torch.tensor([0.1, 0.7], dtype=torch.float64), 0.1
    (part,) = Property.margin(x, 0, Linf(eps)).unsafe(2)
    for value, low, high in zip(x.tolist(), part.lower, part.upper):
        assert Fraction(low) <= Fraction(value) - Fraction(eps)
        assert Fraction(high) >= Fraction(value) + Fraction(eps)
    (cut,) = Property.margin(torch.tensor([0.0, 1.0]), 0, Linf(eps), (0.0, 1.0)).unsafe(2)
    assert cut.lower[0] == 0.0
    assert cut.upper[1] == 1.0
