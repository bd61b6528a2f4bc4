"""Thermal scenes: boxes fit what is drawn, fire burns where it is asked for, gain control keeps order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from holdfast.core.errors import InputError
from holdfast.inputs.corruption.thermal import (
    KELVIN,
    PERSON,
    VEHICLE,
    ThermalScene,
    detector_input,
    gain_control,
    hot_regions,
)


def rendered(fire=False, flights=6, **settings):
    return ThermalScene(fire=fire, **settings).render(flights, 5, np.random.default_rng(0))


def celsius(frames):
    return frames.raw / 100 - KELVIN


def test_frames_flights_and_truth_belong_together():
    frames = rendered()
    assert frames.raw.shape == (30, 64, 64)
    assert frames.flight.tolist() == np.repeat(np.arange(6), 5).tolist()
    assert len(frames.truth) == 30
    assert {label for image in frames.truth for label in image["labels"].tolist()} == {PERSON, VEHICLE}
    for image in frames.truth:
        boxes = image["boxes"]
        assert ((boxes[:, :2] >= 0) & (boxes[:, 2:] <= 64) & (boxes[:, 2:] > boxes[:, :2])).all()


def test_people_are_warm_spots_of_three_to_eight_pixels():
    frames, seen = rendered(), 0
    for heat, image in zip(celsius(frames), frames.truth, strict=True):
        for (left, top, right, bottom), label in zip(image["boxes"].astype(int), image["labels"], strict=True):
            if label == PERSON:
                seen += 1
                assert 2 <= right - left <= 9
                assert 2 <= bottom - top <= 9
                assert 27 < heat[top:bottom, left:right].max() < 42
    assert seen > 20


def test_only_fire_saturates_and_only_people_and_engines_are_warm_without_it():
    quiet, burning = rendered(), rendered(fire=True)
    assert celsius(quiet).max() < 80
    assert celsius(burning).max() == pytest.approx(150, abs=0.01)
    assert hot_regions(quiet.raw, celsius=90.0).sum() == 0
    assert 0.01 < hot_regions(burning.raw, celsius=90.0).mean() < 0.25
    for heat, image in zip(celsius(quiet), quiet.truth, strict=True):
        outside = np.ones(heat.shape, dtype=bool)
        for left, top, right, bottom in image["boxes"].astype(int):
            outside[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = False
        assert heat[outside].max() < 39


def test_frames_of_a_flight_share_its_ground_and_flights_do_not():
    raw = rendered(flights=8).raw.reshape(8, 5, -1).astype(float)
    level = np.median(raw, axis=2)
    assert level.std(axis=1).max() < level.mean(axis=1).std()


def test_the_same_generator_gives_the_same_frames():
    np.testing.assert_array_equal(rendered(fire=True, flights=2).raw, rendered(fire=True, flights=2).raw)


@pytest.mark.parametrize("mode", ["percentile", "plateau"])
@given(
    arrays.arrays(np.uint16, (2, 6, 7)),
    st.floats(0.01, 1.0),
    st.integers(2, 600),
)
def test_gain_control_is_a_monotone_map_of_every_frame(mode, raw, plateau, bins):
    made = gain_control(raw, mode, plateau=plateau, bins=bins)
    assert made.dtype == np.uint8
    for counts, levels in zip(raw.ravel().reshape(2, -1), made.reshape(2, -1), strict=True):
        order = np.argsort(counts, kind="stable")
        assert (np.diff(levels[order].astype(int)) >= 0).all()
        same = np.diff(counts[order].astype(int)) == 0
        assert (np.diff(levels[order].astype(int))[same] == 0).all()


def test_gain_control_at_known_points():
    ramp = np.arange(101, dtype=np.uint16)[None, None] + 1000
    stretched = gain_control(ramp, "percentile", percentiles=(0.0, 100.0))
    np.testing.assert_allclose(stretched[0, 0], 2.55 * np.arange(101), atol=0.51)
    ground = np.full((1, 10, 10), 500, dtype=np.uint16)
    ground[0, 0] = np.arange(510, 610, 10)
    wide, cut = (gain_control(ground, "plateau", plateau=share)[0] for share in (1.0, 0.01))
    assert wide[1, 0] > cut[1, 0]  # with a plateau an even ground leaves more of the range to what stands out


def test_a_plateau_shows_people_beside_a_flame_that_percentiles_drown():
    """Contrast of 37 °C on ground of 20 °C while 3% of the frame burn."""
    counts = np.round(100 * (KELVIN + 20 + np.random.default_rng(0).normal(0, 0.5, (1, 64, 64)))).astype(np.uint16)
    counts[0, :2] = round(100 * (KELVIN + 150))
    counts[0, 30:34, 30:33] = round(100 * (KELVIN + 37))
    contrast = {}
    for mode in ("percentile", "plateau"):
        made = gain_control(counts, mode)[0].astype(float)
        contrast[mode] = made[30:34, 30:33].mean() - np.median(made)
    assert contrast["plateau"] > 1.5 * contrast["percentile"] > 0


def test_hot_regions_by_percentile_hold_that_share():
    raw = np.random.default_rng(0).permutation(10_000).astype(np.uint16).reshape(1, 100, 100)
    assert hot_regions(raw, percentile=98.0).mean() == pytest.approx(0.02, abs=1e-3)


def test_bad_input_is_told():
    frames = rendered(flights=1)
    with pytest.raises(InputError, match="apply gain_control"):
        detector_input(frames.raw)
    assert detector_input(gain_control(frames.raw)).shape == (5, 1, 64, 64)
    with pytest.raises(InputError, match="takes 16-bit"):
        gain_control(gain_control(frames.raw))
    with pytest.raises(InputError, match="mode must be"):
        gain_control(frames.raw, "linear")
    with pytest.raises(InputError, match="plateau 0"):
        gain_control(frames.raw, plateau=0.0)
    with pytest.raises(InputError, match="give one of"):
        hot_regions(frames.raw)
    with pytest.raises(InputError, match="use percentile"):
        hot_regions(gain_control(frames.raw), celsius=60.0)
    with pytest.raises(InputError, match="power of two"):
        ThermalScene(side=50)
    with pytest.raises(InputError, match="crew or vehicles"):
        ThermalScene(crew=0, vehicles=0)
    with pytest.raises(InputError, match="at least one flight"):
        ThermalScene().render(0, 5, np.random.default_rng(0))
