"""False positives by cause: exact coverage, equal recall, true boxes are no cause, reduction with its interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.inputs.boxes import coverage, false_positives_by_cause, reduction

PERSON = [4.0, 4.0, 8.0, 8.0]
FLAME = [16.0, 16.0, 24.0, 24.0]
ELSEWHERE = [28.0, 2.0, 32.0, 6.0]


def fire(n=1):
    mask = np.zeros((n, 32, 40), dtype=bool)
    mask[:, 16:24, 16:22] = True
    return mask


def found(boxes, scores):
    return {"boxes": np.array(boxes), "labels": np.zeros(len(boxes), int), "scores": np.array(scores)}


TRUTH = {"boxes": np.array([PERSON]), "labels": np.array([0])}


@given(st.integers(0, 10_000))
def test_coverage_is_that_of_a_finely_painted_box(seed):
    generator = np.random.default_rng(seed)
    masks = generator.random((2, 6, 7)) < 0.4
    corner = generator.integers(0, 40, (5, 2)) / 8
    boxes = np.concatenate([corner, corner + generator.integers(1, 30, (5, 2)) / 8], axis=1)
    image = generator.integers(0, 2, 5)
    fine = np.pad(masks.repeat(8, 1).repeat(8, 2), ((0, 0), (0, 80), (0, 80)))
    for box, i, share in zip((boxes * 8).astype(int), image, coverage(masks, boxes, image), strict=True):
        assert share == pytest.approx(fine[i, box[1] : box[3], box[0] : box[2]].mean())


def test_a_detection_on_fire_is_caused_by_it_and_one_elsewhere_is_not():
    counts = false_positives_by_cause([found([PERSON, FLAME, ELSEWHERE], [0.5, 0.9, 0.8])], [TRUTH], {"fire": fire()})
    assert counts.thresholds == {0: 0.5}
    assert counts.counts().tolist() == [2]
    assert counts.counts("fire", 0).tolist() == [1]


def test_only_detections_at_the_score_of_the_recall_count():
    counts = false_positives_by_cause([found([PERSON, FLAME], [0.9, 0.8])], [TRUTH], {"fire": fire()})
    assert counts.counts().tolist() == [0]


def test_half_a_box_must_burn():
    boxes = [PERSON, [18.0, 16.0, 26.0, 24.0], [19.0, 16.0, 27.0, 24.0]]  # 4 and 3 of 8 columns burn
    counts = false_positives_by_cause([found(boxes, [0.1, 0.9, 0.8])], [TRUTH], {"fire": fire()})
    assert counts.counts("fire").tolist() == [1]
    assert counts.counts().tolist() == [2]


def test_fire_inside_a_true_box_is_no_cause():
    truth = {"boxes": np.array([PERSON, FLAME]), "labels": np.array([0, 0])}
    doubled = found([PERSON, FLAME, FLAME], [0.5, 0.9, 0.8])
    assert false_positives_by_cause([doubled], [truth], {"fire": fire()}, recall=1.0).counts("fire").tolist() == [0]


def test_reduction_is_the_share_gone():
    bad = [found([PERSON, FLAME, FLAME], [0.5, 0.9, 0.8])] * 20
    good = [found([PERSON, FLAME], [0.5, 0.9 if i % 2 else 0.1]) for i in range(20)]
    before, after = (
        false_positives_by_cause(detections, [TRUTH] * 20, {"fire": fire(20)}) for detections in (bad, good)
    )
    gone = reduction(before, after, "fire", generator=np.random.default_rng(0))
    assert gone.value == pytest.approx(0.75)
    assert 0.5 < gone.low < 0.75 < gone.high < 1
    assert before.per_image("fire", generator=np.random.default_rng(0)).value == 2
    table = before.table(generator=np.random.default_rng(0), names={0: "person"})
    assert table.columns == ("class", "score", "all", "fire")
    assert table.rows[0][0] == "person"


def test_bad_input_is_told():
    with pytest.raises(InputError, match=r"recall of 0\.000 at most"):
        false_positives_by_cause([found([FLAME], [0.9])], [TRUTH], {"fire": fire()})
    with pytest.raises(InputError, match="are 2 for 1 images"):
        false_positives_by_cause([found([PERSON], [0.9])], [TRUTH], {"fire": fire(2)})
    with pytest.raises(InputError, match="class ids"):
        false_positives_by_cause([found([PERSON], [0.9])], [TRUTH], {"fire": fire()}, classes=[1, 2])
    low, high = (
        false_positives_by_cause([found([PERSON], [0.9])], [TRUTH], {"fire": fire()}, recall=recall)
        for recall in (0.5, 0.6)
    )
    with pytest.raises(InputError, match="equal recall"):
        reduction(low, high, "fire", generator=np.random.default_rng(0))
    with pytest.raises(InputError, match="no false positives"):
        reduction(high, high, "fire", generator=np.random.default_rng(0))
    with pytest.raises(InputError, match="no cause is called"):
        high.counts("smoke")
