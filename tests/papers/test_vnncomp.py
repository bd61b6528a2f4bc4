"""Verification instances are read whole: boxes, unsafe sets, and counterexamples that the networks confirm."""

import numpy as np
import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.papers.datasets import data_folder
from holdfast.papers.vnncomp import FAMILIES, instances

needs_data = pytest.mark.skipif(
    data_folder() is None or not (data_folder() / "vnncomp").is_dir(), reason="the verification instances are not here"
)


@needs_data
def test_every_instance_is_there_with_its_verdict():
    found = instances()
    assert len(found) == 414
    assert {one.family for one in found} == set(FAMILIES)
    assert sum(one.agreed for one in found) == 375
    assert len({one.name for one in found}) == 414
    assert all((part.lower <= part.upper).all() for one in found for part in one.asked.disjuncts)


@needs_data
def test_a_published_counterexample_violates_its_property_on_the_network_read():
    archive = np.load(data_folder() / "vnncomp/acasxu/specs_all.npz", allow_pickle=False)
    listed = instances(["acasxu"])
    points = np.split(archive["ce_x"], len(archive["ce_instance"])) if archive["ce_x"].ndim == 1 else archive["ce_x"]
    for place, point in list(zip(archive["ce_instance"], points))[:5]:
        one = listed[int(place)]
        assert one.verdict == "sat"
        x = torch.from_numpy(np.asarray(point, dtype=np.float32)).reshape(1, *one.module().input_shape)
        with torch.no_grad():
            y = one.module()(x)
        assert one.asked.violated(point.reshape(1, -1), y.reshape(1, -1).double().numpy(), tolerance=1e-4).all()


def test_an_unknown_family_is_named():
    with pytest.raises(InputError, match="unknown family acas"):
        instances(["acas"])
