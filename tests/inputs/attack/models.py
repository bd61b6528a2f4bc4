"""Small models whose robustness is known or cheap to measure."""

from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from torch import nn


class Linear(nn.Module):
    """z = W x + b: distances to its decision boundaries are closed forms."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


def linear(seed=0, features=8, classes=4, shape=None, dtype=torch.float64):
    """A random linear model, inputs in [0.3, 0.7] and the labels it gives them."""
    generator = torch.Generator().manual_seed(seed)
    model = Linear(
        torch.randn(classes, features, generator=generator, dtype=dtype),
        0.1 * torch.randn(classes, generator=generator, dtype=dtype),
    ).eval()
    x = 0.3 + 0.4 * torch.rand(32, *(shape or (features,)), generator=generator, dtype=dtype)
    return model, x, model(x).argmax(1)


def convolutional(seed=0, classes=10, channels=1):
    """A small CNN with random but scaled weights, in evaluation mode, float32."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, classes),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan) ** 0.5)
    return model.eval()


def images(model, seed=1, batch=64, channels=1, side=12):
    """Random images with the model's own predictions as labels, a tenth of them wrong on purpose."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, channels, side, side, generator=generator)
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    y[: batch // 10] = (y[: batch // 10] + 1) % logits.shape[1]
    return x, y


@lru_cache
def trained():
    """A small network fitted to scikit-learn's digits, float32, with 200 held-out images in [0, 1] and their labels."""
    bunch = load_digits()
    x, y = bunch.images[:, None] / 16.0, bunch.target
    fitted = MLPClassifier((48,), max_iter=40, random_state=0, early_stopping=False, tol=1e-2)
    fitted.fit(x[200:].reshape(-1, 64), y[200:])
    layers = [nn.Flatten()]
    for weight, bias in zip(fitted.coefs_, fitted.intercepts_):
        layer = nn.Linear(*weight.shape)
        layer.load_state_dict({"weight": torch.tensor(weight.T), "bias": torch.tensor(bias)})
        layers += [layer, nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).float().eval()
    return model, torch.tensor(x[:200], dtype=torch.float32), torch.tensor(y[:200])
