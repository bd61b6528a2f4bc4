"""Limiting cases of the cascade, laziness by count, windows against quantiles, streams against batches."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from torch import nn

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.cascades import (
    TPR,
    CoverageAtRisk,
    RiskAtCoverage,
    Window,
    WindowCascade,
    cost_curve,
    stream,
)
from holdfast.inputs.cascades.members import max_probability
from holdfast.inputs.detection import scores as logit_scores
from holdfast.inputs.selective import risk_coverage


class Counting:
    """A member that remembers how many rows it was asked about."""

    def __init__(self, model):
        self.model, self.classes_, self.rows = model, model.classes_, []

    def predict_proba(self, X):
        self.rows.append(len(X))
        return self.model.predict_proba(X)


def made(n, seed):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, n)
    return np.eye(3)[y] * 1.2 + generator.normal(size=(n, 3)), y


@pytest.fixture(scope="module")
def members():
    X, y = made(300, 0)
    thirds = [slice(0, 40), slice(40, 80), slice(80, 120)]
    return [LogisticRegression().fit(X[part], y[part]) for part in thirds]


VALID, TEST = made(2000, 1), made(1500, 2)
RISK = CoverageAtRisk(0.2)


def test_half_a_width_of_one_half_is_the_ensemble_and_none_is_the_first_member(members):
    everyone = WindowCascade(members, task=RISK, half_width=0.5).fit(*VALID).run(TEST[0])
    p = [member.predict_proba(TEST[0]) for member in members]
    np.testing.assert_allclose(everyone.probabilities, np.mean(p, axis=0), atol=1e-15)
    assert (everyone.stages == 3).all()
    assert everyone.cost == 3
    alone = WindowCascade(members, task=RISK, half_width=0.0).fit(*VALID).run(TEST[0])
    np.testing.assert_array_equal(alone.probabilities, p[0])
    assert alone.cost == 1


def test_members_are_asked_only_for_what_reaches_them(members):
    counted = [Counting(member) for member in members]
    cascade = WindowCascade(counted, task=RISK, half_width=0.1).fit(*VALID)
    for member in counted:
        member.rows.clear()
    result = cascade.run(TEST[0])
    assert [sum(member.rows) for member in counted] == [int((result.stages >= stage).sum()) for stage in (1, 2, 3)]
    assert result.cost == sum(sum(member.rows) for member in counted) / len(TEST[0])
    assert 0.15 < (result.stages >= 2).mean() < 0.25


def test_the_share_that_goes_on_is_twice_the_half_width(members):
    for half_width in (0.05, 0.2, 0.35):
        cascade = WindowCascade(members[:2], task=RISK, half_width=half_width).fit(*VALID)
        assert abs(cascade.cost_ - (1 + 2 * half_width)) < 2e-3


def test_what_leaves_early_is_scored_by_the_first_member_and_what_stays_by_the_average(members):
    cascade = WindowCascade(members[:2], task=RISK).fit(*VALID)
    result = cascade.run(TEST[0])
    first, second = (member.predict_proba(TEST[0]) for member in members[:2])
    inside = cascade.windows_[0].holds(np.log(first.max(1)))
    wanted = np.where(inside[:, None], (first + second) / 2, first)
    np.testing.assert_allclose(result.probabilities, wanted)
    np.testing.assert_allclose(result.scores, np.log(wanted.max(1)))
    np.testing.assert_array_equal(result.accepted, result.scores >= cascade.offset_)
    np.testing.assert_array_equal(cascade.predict(TEST[0]), wanted.argmax(1))


def test_thresholds_reach_the_operating_point_on_validation_data(members):
    X, y = VALID
    for task in (CoverageAtRisk(0.2), RiskAtCoverage(0.6), TPR(0.9)):
        cascade = WindowCascade(members, task=task).fit(X, y)
        accepted = cascade.accept(X)
        if isinstance(task, CoverageAtRisk):
            wrong = (cascade.predict(X) != y)[accepted].mean()
            curve = risk_coverage(cascade.decision_score(X), (cascade.predict(X) != y).astype(float))
            assert wrong <= 0.2
            assert accepted.mean() == curve.coverage[curve.risk <= 0.2].max()
        else:
            share = task.coverage if isinstance(task, RiskAtCoverage) else task.rate
            assert share <= accepted.mean() < share + 1e-3


@settings(max_examples=500)
@example([0, 1], 0.375, 1, "both")  # the window lies between the only two scores
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=40),
    st.floats(0, 0.5),
    st.integers(-1, 7),
    st.sampled_from(["both", "below"]),
)
def test_a_window_holds_at_least_its_share_unless_it_is_empty(values, half_width, threshold, direction):
    scores = np.array(values, dtype=float)
    window = Window.around(float(threshold), scores, half_width, direction)
    share = window.holds(scores).mean()
    if half_width == 0:
        assert share == 0
    else:
        assert share > min(1.0, 2 * half_width) - 1 / len(scores)
    if half_width == 0.5:
        assert window == Window(-np.inf, np.inf)


def test_below_sends_on_the_least_confident(members):
    cascade = WindowCascade(members[:2], task=RISK, half_width=0.1, direction="below").fit(*VALID)
    first = np.log(members[0].predict_proba(TEST[0]).max(1))
    result = cascade.run(TEST[0])
    assert first[result.stages == 2].max() <= first[result.stages == 1].min()


def test_adapted_windows_keep_their_share_when_scores_shift(members):
    shifted = TEST[0] * 0.4
    fixed, adapted = (
        WindowCascade(members[:2], task=RISK, adapt=adapt).fit(*VALID).run(shifted) for adapt in (False, True)
    )
    assert abs(adapted.cost - 1.2) < 0.01
    assert abs(fixed.cost - 1.2) > 0.05


def test_a_stream_decides_as_one_batch_does(members):
    counted = [Counting(member) for member in members]
    cascade = WindowCascade(counted, task=RISK, half_width=0.2).fit(*VALID)
    whole = cascade.run(TEST[0])
    for member in counted:
        member.rows.clear()
    pairs = list(stream(cascade, np.array_split(TEST[0], 30), batch_size=64))
    places = np.concatenate([place for place, _ in pairs])
    order = np.argsort(places)
    np.testing.assert_array_equal(places[order], np.arange(len(TEST[0])))
    for name in ("probabilities", "scores", "stages", "accepted"):
        together = np.concatenate([getattr(result, name) for _, result in pairs])[order]
        np.testing.assert_allclose(together, getattr(whole, name))
    assert min(counted[1].rows[:-1]) >= 64


def test_torch_members_keep_their_order_where_softmax_saturates():
    torch.manual_seed(0)
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    X = torch.from_numpy(VALID[0]).float() * 60
    for score in ("energy", "max_logit", "max_probability"):
        cascade = WindowCascade([first, second], score=score, task=TPR(0.9), half_width=0.5).fit(X)
        with torch.no_grad():
            logits = [model(X).numpy() for model in (first, second)]
        if score == "max_probability":
            wanted = np.mean([np.exp(logit_scores.max_softmax(part)) for part in logits], axis=0)
            assert len(np.unique(cascade.decision_score(X))) > len(np.unique(wanted.astype(np.float32)))
        else:
            wanted = np.mean([getattr(logit_scores, score)(part) for part in logits], axis=0)
            np.testing.assert_allclose(cascade.decision_score(X), wanted)
    np.testing.assert_allclose(
        max_probability(torch.from_numpy(logits[0]).double().softmax(1).numpy()), logit_scores.max_softmax(logits[0])
    )


def test_a_callable_score_and_other_kinds_of_input(members):
    import pandas as pd

    gini = WindowCascade(members, score=lambda p: (p**2).sum(1), task=RISK).fit(*VALID)
    assert ((gini.decision_score(TEST[0]) >= 1 / 3) & (gini.decision_score(TEST[0]) <= 1)).all()
    frame = pd.DataFrame(TEST[0])
    plain = [lambda X, m=member: m.predict_proba(np.asarray(X)) for member in members]
    cascade = WindowCascade(plain, task=RISK).fit(*VALID)
    np.testing.assert_array_equal(cascade.accept(frame), cascade.accept(TEST[0]))
    parts = [result.scores for _, result in stream(cascade, [frame[:700], frame[700:]])]
    assert sum(map(len, parts)) == len(frame)


def test_costs_are_in_the_units_given(members):
    cascade = WindowCascade(members[:2], task=RISK, costs=[2.0, 10.0]).fit(*VALID)
    share = (cascade.run(TEST[0]).stages == 2).mean()
    np.testing.assert_allclose(cascade.run(TEST[0]).cost, 2 + 10 * share)


def test_the_cost_curve_runs_every_member_once_and_meets_single_cascades(members):
    counted = [Counting(member) for member in members[:2]]
    curve = cost_curve(WindowCascade(counted, task=RISK), VALID, TEST, (0.0, 0.1, 0.5))
    assert [member.rows for member in counted] == [[2000, 1500]] * 2
    assert curve.costs[0] == 1
    assert curve.costs[2] == 2
    result = WindowCascade(members[:2], task=RISK, half_width=0.1).fit(*VALID).run(TEST[0])
    assert curve.costs[1] == result.cost
    levels = risk_coverage(result.scores, (result.probabilities.argmax(1) != TEST[1]).astype(float))
    assert curve.qualities[1].value == levels.coverage[levels.risk <= 0.2].max()
    assert curve.series("window").x == tuple(curve.costs)


def test_the_cost_curve_of_detection_needs_foreign_inputs(members):
    cascade = WindowCascade(members[:2], task=TPR(0.9), score="negative_entropy")
    far = np.random.default_rng(3).normal(size=(400, 3))
    curve = cost_curve(cascade, (VALID[0], None), (TEST[0], None), (0.0, 0.2), foreign=far)
    assert 0 < curve.qualities[0].value < 1
    with pytest.raises(InputError, match="foreign"):
        cost_curve(cascade, (VALID[0], None), (TEST[0], None), (0.0,))


def test_frozen_members_survive_cloning(members):
    cascade = WindowCascade([FrozenEstimator(member) for member in members], task=RISK)
    np.testing.assert_array_equal(
        clone(cascade).fit(*VALID).accept(TEST[0]), WindowCascade(members, task=RISK).fit(*VALID).accept(TEST[0])
    )


def test_an_infeasible_target_says_what_could_be_reached(members):
    X, _ = VALID
    with pytest.raises(InputError, match="lowest on the validation data"):
        WindowCascade(members, task=CoverageAtRisk(0.0)).fit(X, (members[0].predict(X) + 1) % 3)


def test_members_must_know_the_same_classes(members):
    X, y = VALID
    with pytest.raises(InputError, match="disagree"):
        WindowCascade([members[0], GaussianNB().fit(X, np.array(list("abc"))[y])], task=RISK).fit(X, y)
    two = lambda X: np.full((len(X), 2), 0.5)  # noqa: E731
    with pytest.raises(InputError, match="knows 2"):
        WindowCascade([members[0].predict_proba, two], task=RISK).fit(X, y)


@pytest.mark.parametrize(
    "change",
    [
        {"half_width": 0.6},
        {"half_width": -0.1},
        {"score": "confidence"},
        {"task": 0.05},
        {"direction": "above"},
        {"members": []},
        {"costs": [1.0]},
        {"score": "energy"},
        {"members": [lambda X: X]},
        {"members": [lambda X: np.zeros((len(X), 1))]},
        {"score": lambda p: p},
    ],
)
def test_bad_settings_are_refused(members, change):
    with pytest.raises(InputError):
        WindowCascade(**{"members": members, "task": RISK, **change}).fit(*VALID)


@pytest.mark.parametrize("y", [None, [0, 1], np.full(2000, 7)])
def test_labels_are_needed_and_checked(members, y):
    with pytest.raises(InputError):
        WindowCascade(members, task=RISK).fit(VALID[0], y)


@pytest.mark.parametrize("task", [lambda: CoverageAtRisk(1.0), lambda: RiskAtCoverage(0.0), lambda: TPR(1.5)])
def test_operating_points_are_checked(task):
    with pytest.raises(InputError):
        task()


def test_adapting_needs_a_batch(members):
    cascade = WindowCascade(members, task=RISK, adapt=True).fit(*VALID)
    with pytest.raises(InputError, match="at least 5"):
        cascade.run(TEST[0][:3])
    with pytest.raises(UnsupportedError):
        stream(cascade, [TEST[0]])
    with pytest.raises(InputError):
        stream(WindowCascade(members, task=RISK).fit(*VALID), [TEST[0]], 0)
