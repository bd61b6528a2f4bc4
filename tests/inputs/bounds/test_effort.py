"""The work of a backward method is the number of signs that intervals leave open."""

import torch
from torch import nn

from holdfast.inputs.bounds import Region, capture
from holdfast.inputs.bounds.effort import open_entries
from holdfast.threats import Linf


def test_open_signs_are_counted_beyond_the_first_layer_whose_box_is_exact():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.rand(3, 4, generator=generator)
    graph = capture(model, x)
    first, last = model[0], model[2]
    centre, radius = first(x), 0.1 * first.weight.abs().sum(1)
    low, high = (centre - radius).clamp(min=0), (centre + radius).clamp(min=0)
    middle, half = last((low + high) / 2), (high - low) / 2 @ last.weight.abs().T
    assert open_entries(graph, Region(x, Linf(0.1))).tolist() == (half > middle.abs()).sum(1).tolist()
    assert open_entries(graph, Region(x, Linf(100.0))).tolist() == [6, 6, 6]
