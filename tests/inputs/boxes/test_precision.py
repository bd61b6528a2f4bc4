"""Average precision: hand-computed cases, the reference implementation, resampling, and loud failures."""

import contextlib
import io
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.inputs.boxes.random_problems import problem

from holdfast.core.errors import InputError
from holdfast.inputs.boxes import ap_estimate, average_precision, iou, match, report, resampled_ap

BOX = [[10.0, 10.0, 50.0, 50.0]]


def truth(boxes=BOX, labels=(1,)):
    return {"boxes": np.array(boxes, dtype=float), "labels": np.array(labels)}


def found(boxes, scores, labels=None):
    boxes = np.array(boxes, dtype=float).reshape(-1, 4)
    return {
        "boxes": boxes,
        "labels": np.ones(len(boxes), int) if labels is None else np.array(labels),
        "scores": np.array(scores, dtype=float),
    }


def test_iou_at_known_points():
    a = np.array([[0.0, 0, 2, 2], [0, 0, 1, 1]])
    b = np.array([[1.0, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]])
    np.testing.assert_allclose(iou(a, b), [[1 / 7, 1, 0], [0, 1 / 4, 0]])
    np.testing.assert_allclose(iou(torch.tensor(a), torch.tensor(b)), iou(a, b))
    assert iou(np.empty((0, 4)), b).shape == (0, 3)


def test_perfect_detections_score_one_and_misses_zero():
    perfect = average_precision([found(BOX, [0.3])], [truth()])
    assert (perfect.ap, perfect.ap50, perfect.ap75, perfect.medium) == pytest.approx((1, 1, 1, 1))
    assert np.isnan(perfect.small)
    assert np.isnan(perfect.large)
    assert average_precision([found([[60, 60, 90, 90]], [0.9])], [truth()]).ap == 0
    assert average_precision([found([], [])], [truth()]).ap == 0


def test_without_objects_there_is_no_precision():
    empty = truth(np.empty((0, 4)), np.empty(0, int))
    assert np.isnan(average_precision([found(BOX, [0.9])], [empty]).ap)
    assert np.isnan(average_precision([found(BOX, [0.9])], [empty], classes=[1]).ap)
    both = average_precision([found(BOX, [0.9]), found(BOX, [0.3])], [empty, truth()])
    assert both.ap == pytest.approx(0.5)  # the box of the empty image is a false positive of the other's class


def test_a_duplicate_is_a_false_positive():
    """Ranked hit, duplicate, hit on two objects: precision 1 up to recall 1/2 (51 marks), 2/3 beyond (50 marks)."""
    other = [60.0, 60.0, 100.0, 100.0]
    doubled = found([*BOX, *BOX, other], [0.9, 0.8, 0.7])
    measured = average_precision([doubled], [truth([*BOX, other], [1, 1])])
    assert measured.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_three_ranked_detections_by_hand():
    """Miss, hit, hit for two objects: precision 1/2 then 2/3, made 2/3 everywhere by the envelope."""
    other = [60.0, 60.0, 100.0, 100.0]
    ranked = found([[200, 200, 220, 220], *BOX, other], [0.9, 0.8, 0.7])
    assert average_precision([ranked], [truth([*BOX, other], [1, 1])]).ap50 == pytest.approx(2 / 3)


def test_ranking_goes_over_the_whole_set_not_image_by_image():
    """A hit at .6 in one image stands below a miss at .9 in another, which an average of image APs would not see."""
    detections = [found(BOX, [0.6]), found([[200, 200, 220, 220]], [0.9])]
    assert average_precision(detections, [truth(), truth([], [])]).ap50 == pytest.approx(0.5)


def test_thresholds_average_over_how_tight_a_box_is():
    """IoU .825 passes the seven thresholds .50 to .80."""
    loose = found([[10.0, 10.0, 50.0, 43.0]], [0.9])
    measured = average_precision([loose], [truth()])
    assert measured.ap == pytest.approx(0.7)
    assert measured.at(threshold=0.8) == pytest.approx(1)
    assert measured.at(threshold=0.85) == 0


def test_crowds_swallow_detections_without_counting():
    crowd = {**truth([[0.0, 0, 100, 100], *BOX], [1, 1]), "iscrowd": np.array([True, False])}
    inside = found([*BOX, [60.0, 60, 80, 80], [70.0, 60, 90, 80]], [0.9, 0.8, 0.7])
    assert average_precision([inside], [crowd]).ap == pytest.approx(1)


def test_only_the_best_hundred_count():
    many = found([[200.0, 200, 220, 220]] * 100 + BOX, np.linspace(0.9, 0.1, 101))
    assert average_precision([many], [truth()]).ap50 == 0
    assert report(match([many], [truth()], most=101)).ap50 == pytest.approx(1 / 101)


def test_matches_say_which_detection_took_which_object():
    other = [60.0, 60.0, 100.0, 100.0]
    made = match([found([other, [0, 0, 5, 5], *BOX], [0.2, 0.9, 0.5])], [truth([*BOX, other], [1, 1])])
    assert made.position.tolist() == [1, 2, 0]
    assert made.taken[0, 0].tolist() == [-1, 0, 1]
    assert made.hit[0, 0].tolist() == [False, True, True]


def test_tensors_as_torchvision_gives_them():
    detections, wanted = problem(3)
    as_tensors = [
        [{key: torch.as_tensor(value) for key, value in image.items()} for image in part]
        for part in (detections, wanted)
    ]
    assert average_precision(*as_tensors).ap == average_precision(detections, wanted).ap


@given(st.integers(0, 10_000))
def test_precision_lies_between_zero_and_one_and_falls_with_recall(seed):
    measured = average_precision(*problem(seed, images=3))
    known = measured.precision[~np.isnan(measured.precision)]
    assert ((known >= 0) & (known <= 1)).all()
    assert (np.diff(np.nan_to_num(measured.precision), axis=-1) <= 1e-12).all()


@given(st.integers(0, 10_000))
def test_a_resample_is_the_average_precision_of_the_repeated_images(seed):
    detections, wanted = problem(seed, ties=False)
    matches = match(detections, wanted)
    drawn = np.random.default_rng(seed).integers(0, len(wanted), (3, len(wanted)))
    kept = [row for row in drawn if any((~wanted[i]["iscrowd"]).any() for i in row)]
    for row in kept:
        again = average_precision([detections[i] for i in row], [wanted[i] for i in row])
        np.testing.assert_allclose(resampled_ap(matches, row[None])[0], again.ap, atol=1e-12)


def test_the_interval_covers_and_shrinks():
    detections, wanted = problem(5, images=200)
    matches = match(detections, wanted)
    wide = ap_estimate(match(detections[:50], wanted[:50]), generator=np.random.default_rng(0), resamples=200)
    narrow = ap_estimate(matches, generator=np.random.default_rng(0), resamples=200)
    assert narrow.value == pytest.approx(report(matches).ap)
    assert 0 < narrow.width < wide.width


def test_bad_input_is_told():
    with pytest.raises(InputError, match=r"no box.*must be converted"):
        average_precision([found([[10, 10, 5, 20]], [0.5])], [truth()])
    with pytest.raises(InputError, match="no 'scores'"):
        average_precision([truth()], [truth()])
    with pytest.raises(InputError, match=r"class ids \[7\].*background"):
        average_precision([found(BOX, [0.5], [7])], [truth()], classes=[1, 2])
    with pytest.raises(InputError, match="2 images and truth for 1"):
        average_precision([found(BOX, [0.5])] * 2, [truth()])
    with pytest.raises(InputError, match="NaN"):
        average_precision([found(BOX, [np.nan])], [truth()])
    with pytest.raises(InputError, match=r"one entry for each of 1"):
        average_precision([found(BOX, [0.5, 0.4])], [truth()])
    with pytest.raises(InputError, match=r"lie in \(0, 1\]"):
        average_precision([found(BOX, [0.5])], [truth()], thresholds=[50.0])
    with pytest.raises(InputError, match="not computed"):
        average_precision([found(BOX, [0.5])], [truth()], thresholds=[0.5]).at(threshold=0.75)
    with pytest.raises(InputError, match="numbered 0 to 0"):
        resampled_ap(match([found(BOX, [0.5])], [truth()]), np.array([[1]]))


def reference(detections, wanted):
    """The twelve numbers of pycocotools, -1 where undefined."""
    if folder := os.environ.get("PYCOCOTOOLS"):
        sys.path.insert(0, folder)
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def entries(images, scored):
        for i, image in enumerate(images):
            for j, box in enumerate(np.asarray(image["boxes"])):
                size = (box[2:] - box[:2]).tolist()
                entry = {"image_id": i, "category_id": int(image["labels"][j]), "bbox": [*box[:2].tolist(), *size]}
                if scored:
                    entry["score"] = float(image["scores"][j])
                else:
                    entry |= {"iscrowd": int(image["iscrowd"][j]), "area": float(image["area"][j])}
                yield entry

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        annotations = [{**entry, "id": k + 1} for k, entry in enumerate(entries(wanted, False))]
        coco.dataset = {
            "images": [{"id": i} for i in range(len(wanted))],
            "annotations": annotations,
            "categories": [{"id": k} for k in (1, 2, 3)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(list(entries(detections, True))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", range(50))
def test_agrees_with_the_reference_implementation(seed):
    detections, wanted = problem(1000 + seed, images=8)
    theirs = reference(detections, wanted)
    ours = average_precision(detections, wanted, classes=[1, 2, 3])
    numbers = [ours.ap, ours.ap50, ours.ap75, ours.small, ours.medium, ours.large]
    np.testing.assert_allclose(np.nan_to_num(numbers, nan=-1), theirs[:6], atol=1e-6)
    known = ours.recall[0][~np.isnan(ours.recall[0])]
    np.testing.assert_allclose(known.mean() if len(known) else -1, theirs[8], atol=1e-6)
