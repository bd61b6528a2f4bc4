"""ONNX files become torch modules that compute the same numbers, with gradients and a free batch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.subject.onnx_graph import load_onnx

pytest.importorskip("onnx")


def shared_nets() -> list[Path]:
    places = [Path(os.environ["HOLDFAST_DATA"])] if "HOLDFAST_DATA" in os.environ else []
    places.append(Path(__file__).resolve().parents[3] / "shared" / "data")
    found = next((place / "vnncomp" for place in places if (place / "vnncomp").is_dir()), None)
    return [] if found is None else sorted(found.glob("*/nets/*.onnx.gz"))


NETS = shared_nets()


@pytest.mark.skipif(not NETS, reason="the verification networks are not on this machine (HOLDFAST_DATA)")
@pytest.mark.parametrize("path", NETS, ids=lambda path: path.name.split(".")[0])
def test_agrees_with_the_recorded_outputs(path):
    reference = np.load(path.parents[1] / "reference_io.npz")
    name = path.name.removesuffix(".onnx.gz")
    x, y = reference[f"{name}__x"], reference[f"{name}__y"]
    network = load_onnx(path)
    batch = torch.from_numpy(x.astype(np.float32)).reshape(len(x), *network.input_shape).requires_grad_()
    ours = network(batch)
    np.testing.assert_allclose(ours.detach().numpy(), y.reshape(len(x), -1), rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(ours.sum(), batch)
    assert torch.isfinite(gradient).all()
