"""The smoke check of `sensor-mcqa` runs, and its parts mean what they say."""

import numpy as np

from holdfast.inputs.text.mcqa import Answers
from holdfast.papers.inputs import sensor_mcqa
from holdfast.papers.paper import Scale


def test_smoke_holds():
    outcome = sensor_mcqa.check(Scale.SMOKE)
    assert outcome.holds
    assert outcome.to_dict()["seeds"] == [0]


def test_image_items_show_one_image_of_the_class_asked_for():
    y = np.arange(200) % 10
    for item in sensor_mcqa._image_items(y, 50, np.random.default_rng(0)):
        shown = [int(option.split()[1]) % 10 for option in item.options]
        assert [label == int(item.asset) for label in shown] == list(item.correct)


def test_the_bias_learnt_is_the_one_that_was_planted():
    items = list(sensor_mcqa._image_items(np.arange(200) % 10, 4000, np.random.default_rng(0)))
    answers = Answers(tuple(items), (np.zeros(5),) * len(items))
    wanted = np.log(sensor_mcqa.WRITTEN) - np.log(sensor_mcqa.WRITTEN[-1])
    np.testing.assert_allclose(sensor_mcqa._learnt_bias(answers, ridge=0.0), wanted, atol=0.2)
    shrunk = sensor_mcqa._learnt_bias(answers)
    assert np.linalg.norm(shrunk) < np.linalg.norm(wanted)
    assert list(np.argsort(-shrunk)[:2]) == [0, 1]  # the order of the two places that are favoured survives the ridge
