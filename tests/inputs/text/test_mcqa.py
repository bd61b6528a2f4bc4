"""Multiple choice: items that cannot be, what a model is shown, and numbers against counts made by hand."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score, mutual_info_score

from holdfast.core.errors import InputError
from holdfast.inputs.text.mcqa import Answers, MCQItem, aligned, ask, labels_from, read_items, stress
from holdfast.inputs.text.mcqa_edits import COMPLEX, EDITS, SIMPLE, distractors_for, perturb
from holdfast.inputs.text.mcqa_uncertainty import uncertainty
from holdfast.papers import datasets

needs_data = pytest.mark.skipif(datasets.data_folder() is None, reason="the shared data folder is not on this machine")
ITEM = MCQItem("Which is red?", ("sky", "blood", "grass"), (False, True, False), key=7, asset="colours")


def item(truth, k=5, key=0, asset="a"):
    return MCQItem(
        "Which?", tuple(f"o{j}" for j in range(k)), tuple(bool(j == truth) for j in range(k)), key=key, asset=asset
    )


def answers(logits, truths, k=5, assets="ab"):
    items = [item(t, k, key, assets[key % len(assets)]) for key, t in enumerate(truths)]
    return Answers(tuple(items), tuple(np.asarray(row, dtype=np.float64) for row in logits))


def by_name(prompt):
    return [float(option[1:]) for option in prompt.options]


@pytest.mark.parametrize(
    ("options", "correct", "ids", "words"),
    [
        (("a",), (True,), (), "at least two"),
        (("a", "a"), (True, False), (), "twice"),
        (("a", "b"), (False, False), (), "at least one true"),
        (("a", "b"), (True,), (), "2 marks"),
        (("a", "b"), (True, False), ("A", "A"), "different option_ids"),
    ],
)
def test_an_item_that_cannot_be_is_refused(options, correct, ids, words):
    with pytest.raises(InputError, match=words):
        MCQItem("q", options, correct, ids)


def test_what_a_model_is_shown():
    (prompt,) = ITEM.prompts()
    assert prompt.text == "Which is red?\nA. sky\nB. blood\nC. grass"
    moved = perturb(ITEM, ("relabel", "bracket", "question_last"), np.random.default_rng(0))
    assert moved.prompts()[0].text == "P) sky\nQ) blood\nR) grass\nWhich is red?"
    single = perturb(ITEM, "one_by_one", np.random.default_rng(0)).prompts()
    assert [prompt.options for prompt in single] == [("sky",), ("blood",), ("grass",)]
    assert "Proposed answer: blood" in single[1].text
    assert not hasattr(prompt, "correct")


@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.lists(st.sampled_from(EDITS), unique=True))
def test_no_edit_changes_the_right_answer(k, seed, edits):
    before = item(seed % k, k)
    after = perturb(before, edits, np.random.default_rng(seed), str.upper, [f"d{j}" for j in range(20)])
    assert after.options[after.correct.index(True)] == before.options[seed % k]
    assert sum(after.correct) == 1
    assert set(before.options) <= set(after.options)
    assert len(after.options) == (10 if "distract" in edits else k)
    assert after.key == before.key


def test_orders_and_labels():
    back = perturb(item(0), "reverse", np.random.default_rng(0))
    assert back.options == ("o4", "o3", "o2", "o1", "o0")
    assert back.option_ids == ("A", "B", "C", "D", "E")
    places = [perturb(item(0), "simple", np.random.default_rng(seed)).correct.index(True) for seed in range(1000)]
    assert np.bincount(places, minlength=5).min() > 150
    assert set(SIMPLE) < set(COMPLEX)
    assert labels_from("P", 3) == ("P", "Q", "R")


def test_bad_edits_are_told():
    generator = np.random.default_rng(0)
    with pytest.raises(InputError, match="no edit is called"):
        perturb(ITEM, "shuffle", generator)
    with pytest.raises(InputError, match="paraphrase="):
        perturb(ITEM, "paraphrase", generator)
    with pytest.raises(InputError, match="needs 7 distractors to reach 10 options, got 1"):
        perturb(ITEM, "distract", generator, distractors=["sea", "sky"])
    with pytest.raises(InputError, match="past 'Z'"):
        perturb(item(0, 12), "relabel", generator)


def test_distractors_come_from_the_same_asset_and_are_not_right():
    others = [
        MCQItem("Which is red?", ("rose", "leaf"), (True, False), key=1, asset="colours"),
        MCQItem("Which is blue?", ("sea", "coal", "sky"), (True, False, False), key=2, asset="colours"),
        MCQItem("Which is red?", ("iron", "gold"), (True, False), key=3, asset="metals"),
    ]
    assert distractors_for(ITEM, [ITEM, *others]) == ("leaf", "sea", "coal")


def test_a_model_blind_to_order_loses_nothing_and_one_that_takes_the_first_place_is_caught():
    generator = np.random.default_rng(1)
    items = [item(0 if i % 2 else 4, key=i) for i in range(400)]
    twins = {
        "simple": [perturb(i, "simple", generator) for i in items],
        "one": [perturb(i, "one_by_one", generator) for i in items],
    }
    report = stress(by_name, items, twins)
    assert report.plain.accuracy().value == 0.5
    for name in twins:
        assert (report.stresses[name].answers.right == report.plain.right).all()
        assert report.stresses[name].drop_rate.value == 0
        assert report.stresses[name].recall.value == 1
    first = stress(lambda prompt: np.arange(len(prompt.options))[::-1], items, twins)
    assert first.stresses["simple"].drop_rate.high < 0
    assert first.plain.position_recall()[0].value == 1
    assert first.plain.position_recall()[4].value == 0
    assert first.plain.position_information().nats == pytest.approx(np.log(2))
    assert first.plain.position_information().p < 1e-9
    assert [row[0] for row in report.table().rows] == ["as written", "simple", "one"]


def test_numbers_of_a_stress_are_counts():
    truths, before, after = [0, 1, 2, 3], [0, 1, 0, 0], [0, 0, 2, 0]
    items = [item(t, key=key) for key, t in enumerate(truths)]
    twins = [perturb(i, "relabel", np.random.default_rng(0)) for i in items]

    def model(prompt):
        return np.eye(5)[picks.pop(0)]

    picks = before + after
    measured = stress(model, items, {"again": twins}).stresses["again"]
    assert measured.accuracy.value == 0.5
    assert measured.drop_rate.value == 0
    assert measured.consistent.value == 0.25
    assert measured.recall.value == 0.5


def test_several_right_options_agree_with_scikit_learn():
    generator = np.random.default_rng(3)
    marks, z = generator.random((60, 4)) < 0.4, generator.normal(size=(60, 4))
    marks[~marks.any(axis=1), 0] = True
    items = tuple(MCQItem("q", tuple("abcd"), tuple(map(bool, m)), key=i, several=True) for i, m in enumerate(marks))
    told = Answers(items, tuple(z))
    assert told.right.tolist() == ((z > 0) == marks).all(axis=1).tolist()
    assert told.micro_f1(generator).value == pytest.approx(f1_score(marks, z > 0, average="micro"))
    assert told.jaccard().value == pytest.approx(jaccard_score(marks, z > 0, average="samples"))
    hit, place = (z > 0)[marks], np.nonzero(marks)[1]
    assert told.position_information().nats == pytest.approx(mutual_info_score(place, hit))


def test_position_information_does_not_mistake_length_for_place():
    short, long = answers([[1, 0]] * 100, [0, 1] * 50, 2), answers([[0.0] * 5] * 100, [0, 1, 2, 3, 4] * 20)
    blind = Answers(
        short.items + long.items, tuple(np.eye(2)[i.correct.index(True)] for i in short.items) + long.logits
    )
    assert blind.position_information().p == 1
    assert set(blind.position_recall(2)) == {0, 1}
    with pytest.raises(InputError, match="no item has 3"):
        blind.position_recall(3)


def test_accuracy_by_kind_and_a_tie_answers_nothing():
    told = answers([[1, 0], [0, 1], [0, 0], [0, 0]], [0, 0, 0, 1], 2)
    assert told.accuracy().value == 0.25
    assert {kind: e.value for kind, e in told.accuracy_by("asset").items()} == {"a": 0.5, "b": 0.0}
    assert told.accuracy_by("options")["2"].n == 4


def test_bad_models_and_forms_are_told():
    with pytest.raises(InputError, match=r"has 5 options, got logits of shape \(3,\)"):
        ask(lambda prompt: [0, 0, 0], [item(0)])
    with pytest.raises(InputError, match="NaN"):
        ask(lambda prompt: [np.nan] * 5, [item(0)])
    with pytest.raises(InputError, match="no items"):
        ask(by_name, [])
    with pytest.raises(InputError, match="same keys"):
        stress(by_name, [item(0, key=1)], {"other": [item(0, key=2)]})
    with pytest.raises(InputError, match="same key"):
        aligned([item(0), item(1)])


def test_files_are_read_and_damage_is_named(tmp_path):
    good = {"question": "q", "options": ["a", "b"], "correct": [True, False], "id": 4, "asset_name": "pump"}
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "options": ["a", "a"]}) + "\n{}\n")
    with pytest.raises(InputError, match=r"line 2.*twice"):
        read_items(path)
    with pytest.warns(UserWarning, match="2 lines are no items"):
        (read,) = read_items(path, "skip")
    assert (read.key, read.asset, read.option_ids) == (4, "pump", ("A", "B"))
    path.write_text("{}\n")
    with pytest.raises(InputError, match="no field 'question'"):
        read_items(path)


def test_sets_agree_with_the_published_recipe():
    generator = np.random.default_rng(5)
    truths, z = generator.integers(6, size=300), generator.normal(size=(300, 6)) * 2
    z[np.arange(300), truths] += 2
    told = answers(z, truths, 6, "abcdef")
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assets = np.array([i.asset for i in told.items])
    names = np.unique(assets)
    calibrates = np.isin(assets, names[np.random.default_rng(9).permutation(6)[:3]])
    n = calibrates.sum()
    rank = int(np.ceil((n + 1) * 0.9))
    for score in ("lac", "aps"):
        down = np.sort(p, axis=1)[:, ::-1].cumsum(axis=1)
        place = (-p).argsort(axis=1).argsort(axis=1)
        mass = 1 - p if score == "lac" else np.take_along_axis(down, place, axis=1)
        bound = np.sort(mass[np.arange(300), truths][calibrates])[rank - 1]
        sets = mass[~calibrates] <= bound
        sets[np.arange(len(sets)), p[~calibrates].argmax(axis=1)] = True
        found = uncertainty(told, np.random.default_rng(9), score=score)
        assert found.mean_size.value == pytest.approx(sets.sum(axis=1).mean(), abs=1e-9)
        assert found.coverage.value == pytest.approx(sets[np.arange(len(sets)), truths[~calibrates]].mean(), abs=1e-9)
        assert found.uacc == pytest.approx(found.accuracy * np.sqrt(6) / found.mean_size.value)


def test_options_that_an_item_does_not_have_are_in_no_set():
    items = [item(0, 2, key, "ab"[key % 2]) for key in range(40)] + [
        item(4, 5, key, "ab"[key % 2]) for key in range(40, 80)
    ]
    found = uncertainty(
        Answers(tuple(items), tuple(np.zeros(len(i.options)) for i in items)), np.random.default_rng(0), score="aps"
    )
    assert found.mean_size.value <= 3.5


def test_sets_need_one_right_option_and_two_parts():
    several = Answers((MCQItem("q", ("a", "b"), (True, True)),), (np.zeros(2),))
    with pytest.raises(InputError, match="one right option"):
        uncertainty(several, np.random.default_rng(0))
    with pytest.raises(InputError, match="1 assets leaves one"):
        uncertainty(answers([[1, 0]] * 4, [0] * 4, 2, "a"), np.random.default_rng(0))


@needs_data
def test_the_published_twins_are_twins():
    path = datasets.data_path("failuresensoriq/single_answer_5opt.jsonl.gz")
    plain, simple = read_items(path), read_items(path.with_name("single_answer_5opt_perturbed_simple.jsonl.gz"))
    plain, simple = aligned(plain, simple)
    assert len(plain) == 2667
    for before, after in zip(plain, simple, strict=True):
        assert sorted(after.options) == sorted(before.options)
        assert after.options[after.correct.index(True)] == before.options[before.correct.index(True)]
        labels = perturb(before, ("reorder", "relabel", "bracket"), np.random.default_rng(0)).option_ids
        assert after.option_ids == labels
