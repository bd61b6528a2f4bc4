"""The shipped networks: small, loadable, and what their cards say."""

import numpy as np
import pytest
import torch

from holdfast.core.errors import InputError, MissingData
from holdfast.papers import datasets
from holdfast.papers.bench_models import FOLDER, card, empty, load
from holdfast.papers.bench_models.networks import NETWORKS, initialise


def test_all_files_together_are_small():
    assert sum(file.stat().st_size for file in FOLDER.glob("*.safetensors")) <= 400_000


@pytest.mark.parametrize("name", NETWORKS)
def test_the_card_tells_the_truth(name):
    try:
        x, y = datasets.fashion_mnist("test", 1000)
    except MissingData as missing:
        pytest.skip(str(missing))
    model = load(name)
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) == card(name)["parameters"]
    with torch.no_grad():
        accuracy = float((model(torch.from_numpy(x)).argmax(1).numpy() == y).mean())
    assert accuracy == pytest.approx(card(name)["accuracy"], abs=0.03)


def test_adversarial_training_shows_in_the_cards():
    assert card("cnn_linf")["accuracy_pgd20_linf_0.1"] > 0.6
    assert card("cnn")["accuracy_pgd20_linf_0.1"] < 0.2


@pytest.mark.parametrize("name", NETWORKS)
def test_initial_weights_come_from_the_generator_alone(name):
    first, second = empty(name), empty(name)
    before = torch.random.get_rng_state()
    for model in (first, second):
        initialise(model, torch.Generator().manual_seed(3))
    assert torch.equal(torch.random.get_rng_state(), before)
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(first(x), second(x))
    assert np.isfinite(first(x).detach().numpy()).all()


def test_an_unknown_name_is_told():
    with pytest.raises(InputError, match="there are cnn"):
        load("resnet")
