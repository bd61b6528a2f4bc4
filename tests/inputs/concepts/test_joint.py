"""Tables against Bayes' rule and against sums written out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.inputs.concepts.joint import JointTable, all_states, clamps


def random_table(seed, concepts=3, classes=4, n=2):
    generator = np.random.default_rng(seed)
    return JointTable(torch.from_numpy(generator.normal(size=(n, 2**concepts, classes)) * 3))


def test_states_count_in_binary():
    assert all_states(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert all_states(0).shape == (1, 0)


@given(st.integers(0, 10_000))
def test_marginals_are_sums_of_the_normalised_table(seed):
    table = random_table(seed)
    p = table.log_weights.flatten(1).softmax(1).reshape(table.log_weights.shape)
    torch.testing.assert_close(table.class_probs(), p.sum(1))
    ones = all_states(3).double()
    torch.testing.assert_close(table.concept_probs(), torch.einsum("nsy,sk->nk", p, ones))


@given(st.integers(0, 10_000), st.integers(0, 2), st.integers(0, 2), st.integers(0, 1))
def test_conditionals_sum_to_one_and_obey_the_law_of_total_probability(seed, asked, known, value):
    table = random_table(seed)
    if asked != known:
        both = sum(table.conditional({asked: v}, {known: value}) for v in (0, 1))
        torch.testing.assert_close(both, torch.ones(2, dtype=torch.float64))
    total = sum(table.conditional({asked: 1}, {"class": y}) * table.conditional({"class": y}, {}) for y in range(4))
    torch.testing.assert_close(total, table.concept_probs()[:, asked])


def test_independent_parts_stay_independent():
    first, second = torch.tensor([0.3, 0.7]).double(), torch.tensor([0.9, 0.1]).double()
    joint = (first[:, None] * second[None]).reshape(1, 4, 1) * torch.tensor([0.2, 0.8]).double()
    table = JointTable(joint.log())
    np.testing.assert_allclose(table.conditional({0: 1}, {1: 1, "class": 0}).item(), 0.7)
    np.testing.assert_allclose(table.conditional({0: 1, 1: 0}, {}).item(), 0.63)
    state, label, weight = table.mode()
    assert (state.tolist(), label.tolist()) == ([[1, 0]], [1])
    np.testing.assert_allclose(weight.exp().item(), 0.7 * 0.9 * 0.8)


@pytest.mark.parametrize(
    ("query", "given"),
    [({}, {0: 1}), ({5: 1}, {}), ({0: 2}, {}), ({"class": 9}, {}), ({"colour": 1}, {}), ({0: 1}, {0: 0})],
)
def test_events_that_make_no_sense_are_refused(query, given):
    with pytest.raises(InputError):
        random_table(0).conditional(query, given)


def test_what_is_known_comes_as_an_array_or_by_name():
    by_name = clamps({1: 1, 2: torch.tensor([0, -0, 1])}, 3, 3)
    assert by_name.tolist() == [[-1, 1, 0], [-1, 1, 0], [-1, 1, 1]]
    assert torch.equal(clamps(by_name, 3, 3), by_name)
    for bad in (
        {7: 1},
        {0: 2},
        {0: torch.tensor([0, 1])},
        torch.full((3, 3), 2),
        torch.zeros((2, 3), dtype=torch.int64),
    ):
        with pytest.raises(InputError):
            clamps(bad, 3, 3)


def test_a_table_has_two_to_the_k_states():
    with pytest.raises(InputError, match="2\\^K"):
        JointTable(torch.zeros(1, 3, 2))
