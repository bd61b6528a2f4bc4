"""The smoke checks of the detection papers run and hold; scenes and the small detector they share do what they say."""

import numpy as np
import pytest
import torch

from holdfast.inputs.boxes import average_precision
from holdfast.papers.centre_detector import CellTargets, CentreDetector, detect, detection_loss, fit_detector
from holdfast.papers.inputs import attribute_editing, detector_shift, thermal_detect
from holdfast.papers.paper import Scale
from holdfast.papers.scenes import CutOuts, bounding_boxes, detection_scenes


@pytest.mark.parametrize("entry", [attribute_editing, detector_shift, thermal_detect])
def test_smoke(entry):
    outcome = entry.check(Scale.SMOKE)
    assert outcome.criteria
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []


def cut_outs():
    pixels = np.zeros((2, 28, 28), dtype=np.float32)
    pixels[0, 4:24, 8:20], pixels[1, 10:18, 2:26] = 0.8, 0.6
    masks = pixels > 0
    return CutOuts(pixels, masks, bounding_boxes(masks), np.array([0, 3]))


def test_boxes_of_scenes_are_those_of_what_was_pasted():
    dark = np.zeros((1, 3, 64, 64), dtype=np.float32)
    scenes = detection_scenes(20, cut_outs(), dark, np.random.default_rng(0), most=1)
    for image, truth in zip(scenes.images, scenes.truth, strict=True):
        lit = image.max(0) > 0
        np.testing.assert_array_equal(bounding_boxes(lit[None]).astype(float), truth["boxes"])
        width, height = truth["boxes"][0, 2:] - truth["boxes"][0, :2]
        assert 14 <= max(width, height) <= 33
        assert (width > height) == (truth["labels"][0] == 3)


def test_maps_that_equal_their_targets_decode_to_the_boxes():
    truth = [{"boxes": np.array([[8.0, 8, 24, 40], [40, 20, 60, 30]]), "labels": np.array([1, 0])}]
    targets = CellTargets(truth, 2, 64)
    assert (targets.heat == 1).flatten(2).sum(2).tolist() == [[1, 1]]

    class Oracle(CentreDetector):
        def forward(self, images):
            centre = torch.arange(16) * 4 + 2.0
            left, top, right, bottom = targets.boxes.unbind(1)
            x, y = centre[None], centre[:, None]
            distances = torch.stack([x - left, y - top, right - x, bottom - y], 1)
            return torch.logit(targets.heat.clamp(1e-6, 1 - 1e-6)), distances

    oracle = Oracle(2)
    (found,) = detect(oracle, np.zeros((1, 3, 64, 64), np.float32))
    confident = found["scores"] > 0.9
    order = np.argsort(found["labels"][confident])
    np.testing.assert_allclose(found["boxes"][confident][order], truth[0]["boxes"][::-1])
    loss = detection_loss(*oracle(torch.zeros(1, 3, 64, 64)), targets.heat, targets.boxes, targets.counts)
    assert float(loss) < 0.2


def test_a_few_steps_learn_two_shapes_and_repeat_exactly():
    scenes = detection_scenes(64, cut_outs(), np.zeros((1, 3, 64, 64), np.float32), np.random.default_rng(0), most=2)
    first, second = (
        fit_detector(CentreDetector(5), scenes.images, scenes.truth, seed=0, steps=30, batch=16)[0] for _ in range(2)
    )
    assert average_precision(detect(first, scenes.images), scenes.truth).ap50 > 0.5
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
