"""Scores agree with pytorch-ood's where it is installed, and the comparison can tell when they do not."""

import numpy as np
import pytest
from benchmarks.harness import version

from benchmarks import detection
from holdfast.inputs.detection.scores import max_softmax

needs_peer = pytest.mark.skipif(version("pytorch-ood") is None, reason="pytorch-ood is a bench peer")


@needs_peer
@pytest.mark.parametrize("name", detection.SCORES)
def test_scores_of_logits_agree(name):
    module, detector, equal = detection.SCORES[name]
    z = detection.logits(200, 7)
    ours, theirs = detection.our_logit_score(name, z), detection.their_logit_score(module, detector, z)
    assert equal(ours, theirs)
    assert not equal(ours + 1e-3, theirs)


@needs_peer
@pytest.mark.parametrize("name", detection.DETECTORS)
def test_detectors_agree(name):
    ours, theirs, tolerance = detection.DETECTORS[name]
    data = detection.features(300, 6, 3)
    np.testing.assert_allclose(ours(data), theirs(data), rtol=tolerance, atol=tolerance)


def test_the_comparison_knows_that_ours_is_a_logarithm():
    z = detection.logits(50, 5)
    probability = np.exp(z - z.max(1, keepdims=True))
    probability = (probability / probability.sum(1, keepdims=True)).max(1)
    assert detection.same_probability(max_softmax(z), probability)
    assert not detection.same_probability(max_softmax(z), probability + 1e-6)


def test_every_benchmark_names_its_peer_and_is_skipped_without_it():
    assert {benchmark.peer for benchmark in detection.BENCHMARKS} == {"pytorch-ood"}
    assert {benchmark.peer_version for benchmark in detection.BENCHMARKS} == {version("pytorch-ood")}
    assert len({benchmark.name for benchmark in detection.BENCHMARKS}) == len(detection.BENCHMARKS)
