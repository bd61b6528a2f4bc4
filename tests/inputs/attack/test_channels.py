"""Channels: smoothness, bands of noise, variety and dissection on networks whose channels are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.attack.channels import (
    activation_smoothness,
    band_noise,
    channel_variety,
    cut_off,
    dissect,
    frequency_response,
    kernel_smoothness,
    noise_transfer,
    total_variation,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def convolution(*kernels, **options):
    """One convolution of one input channel with these kernels and no bias."""
    weight = torch.stack([torch.as_tensor(kernel, dtype=torch.float32) for kernel in kernels])[:, None]
    layer = nn.Conv2d(1, len(kernels), weight.shape[-1], bias=False, **options)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return nn.Sequential(layer).eval()


DELTA = [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
FLAT = [[1, 1, 1]] * 3


def test_total_variation_of_kernels_known_by_hand():
    delta, flat, board = (torch.tensor(k, dtype=torch.float64) for k in (DELTA, FLAT, [[1, -1], [-1, 1]]))
    assert float(total_variation(delta)) == pytest.approx(4)
    assert float(total_variation(flat)) == 0
    assert float(total_variation(board)) == pytest.approx(8 / 2)
    assert math.isnan(float(total_variation(torch.zeros(3, 3))))


@given(st.floats(0.01, 100), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_smoothness_does_not_see_the_size_of_kernels(scale, seed):
    kernel = torch.randn(5, 5, generator=seeded(seed), dtype=torch.float64)
    assert float(total_variation(scale * kernel)) == pytest.approx(float(total_variation(kernel)))


def test_smoothness_by_layer_leaves_out_single_taps_and_dead_kernels():
    model = nn.Sequential(convolution(DELTA, FLAT, [[0] * 3] * 3)[0], nn.Conv2d(3, 2, 1), nn.ReLU())
    found = kernel_smoothness(model)
    assert list(found) == ["0"]
    assert (found["0"].value, found["0"].n) == (pytest.approx(2), 2)
    with pytest.raises(InputError, match="no two-dimensional convolution"):
        kernel_smoothness(nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1)))


def test_frequency_response_of_a_point_and_of_an_average():
    point, average = frequency_response(convolution(DELTA), "0"), frequency_response(convolution(FLAT), "0")
    np.testing.assert_allclose(point, 1, atol=1e-12)
    assert average[0] == pytest.approx(3)  # sum of a 3x3 kernel of unit norm
    assert average[0] > average[5] > average[10]
    assert cut_off(point) == 0.5
    assert 0.1 < cut_off(average) < 0.35
    with pytest.raises(InputError, match="no convolution"):
        frequency_response(convolution(DELTA), "1")


@given(st.floats(0, 0.4), st.floats(0.1, 0.3), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_noise_holds_its_band_and_its_size(low, width, seed):
    x = torch.zeros(3, 2, 20, 16, dtype=torch.float64)
    noise = band_noise(x, low, low + width, 0.3, seeded(seed))
    torch.testing.assert_close(noise.square().mean((1, 2, 3)).sqrt(), torch.full((3,), 0.3, dtype=torch.float64))
    power = torch.fft.fft2(noise).abs()
    radii = np.hypot(np.fft.fftfreq(20)[:, None], np.fft.fftfreq(16)[None])
    outside = torch.from_numpy((radii < low) | (radii >= low + width))
    assert float(power[..., outside].max()) < 1e-9


def test_a_point_passes_all_noise_alike_and_an_average_only_the_slow():
    x = torch.rand(8, 1, 16, 16, generator=seeded(1))
    wrap = {"padding": 1, "padding_mode": "circular"}
    point = noise_transfer(convolution(DELTA, **wrap), x, "0", rms=0.2, generator=seeded())
    assert point.shape == (8, 4)
    wanted = 0.2 * 16 / torch.linalg.vector_norm(x.flatten(1), dim=1).numpy()
    np.testing.assert_allclose(point, wanted[:, None].repeat(4, 1), rtol=1e-4)
    average = noise_transfer(convolution(FLAT, **wrap), x, "0", rms=0.2, generator=seeded())
    assert (average[:, 0] > 3 * average[:, 2]).all()
    again = noise_transfer(convolution(FLAT, **wrap), x, "0", rms=0.2, generator=seeded())
    np.testing.assert_array_equal(average, again)


def test_smoothness_of_maps():
    x = torch.zeros(2, 1, 5, 5)
    x[:, 0, 2, 2] = 1
    x[1] = 0
    found = activation_smoothness(convolution(DELTA), x, "0")
    assert found[0] == pytest.approx(4)
    assert math.isnan(found[1])


def test_variety_of_a_channel_that_wants_one_class_and_of_one_that_takes_all():
    generator = seeded()
    x = torch.rand(400, 2, 6, 6, generator=generator)
    y = torch.arange(400) % 4
    x[:, 0] += 10 * (y == 2)[:, None, None]
    layer = nn.Conv2d(2, 3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0]])[:, :, None, None])
    variety = channel_variety(nn.Sequential(layer).eval(), x, y, "0", top=50)
    assert variety.label_entropy[0] == pytest.approx(0)
    assert variety.label_entropy[1] == pytest.approx(math.log(4), abs=0.1)
    assert math.isnan(variety.label_entropy[2])
    assert variety.pixel_distance[0] < 0.6 < variety.pixel_distance[1]
    assert variety.feature_distance[0] < 0.1 < variety.feature_distance[1]
    with pytest.raises(InputError, match="cannot be taken"):
        channel_variety(nn.Sequential(layer), x[:10], y[:10], "0")


def test_dissection_finds_the_concept_a_channel_copies():
    generator = seeded()
    concepts = torch.rand(30, 2, 8, 8, generator=generator) < 0.01
    noise = torch.rand(30, 1, 8, 8, generator=generator)
    x = torch.cat([concepts[:, 1:].float() * 9 + 0.1 * noise, noise], 1)
    layer = nn.Conv2d(2, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2)[:, :, None, None])
    model = nn.Sequential(layer).eval()
    share = float(concepts[:, 1].double().mean())
    found = dissect(model, x, concepts, "0", quantile=1 - share - 1e-3)
    assert found.detects.tolist() == [1, -1]
    assert found.iou[0, 1] > 0.85
    wanted = (x[:, 0] > np.quantile(x[:, 0].double().numpy(), 1 - share - 1e-3)).numpy()
    both, either = (wanted & concepts[:, 1].numpy()).sum(), (wanted | concepts[:, 1].numpy()).sum()
    assert found.iou[0, 1] == pytest.approx(both / either)


def test_dissection_enlarges_maps_to_the_image():
    x = torch.zeros(4, 1, 8, 8)
    x[:, :, :4, :4] = 1
    model = nn.Sequential(nn.Identity(), nn.AvgPool2d(4)).eval()
    masks = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    masks[:, :, :4, :4] = True
    found = dissect(model, x, masks, "1", quantile=0.5)
    assert found.iou[0, 0] > 0.3


def test_bad_input_is_told():
    x = torch.rand(3, 1, 8, 8, generator=seeded())
    model = nn.Sequential(convolution(DELTA)[0], nn.Flatten(), nn.Linear(36, 2)).eval()
    with pytest.raises(InputError, match="no layer 'conv9'; it has 0"):
        noise_transfer(model, x, "conv9")
    with pytest.raises(InputError, match="maps"):
        noise_transfer(model, x, "2")
    with pytest.raises(InputError, match="rise"):
        noise_transfer(model, x, "0", (0.2, 0.1))
    with pytest.raises(InputError, match="no frequency"):
        band_noise(x, 0.8, 0.9, 0.1)
    with pytest.raises(InputError, match="masks have shape"):
        dissect(model, x, torch.zeros(3, 1, 7, 8, dtype=torch.bool), "0")
    with pytest.raises(InputError, match="quantile"):
        dissect(model, x, torch.zeros(3, 1, 8, 8, dtype=torch.bool), "0", quantile=1.0)
