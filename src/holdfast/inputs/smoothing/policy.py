"""A network that chooses how far to trust the robust one (Bai, Anderson, Kim & Sojoudi, 2024).

From features of both models a small network makes a score, high where the input looks attacked:

    gamma(x) = W_2 relu(W_1 [features of g, features of h] + b_1) + b_2
    a(x)     = a_0 + (a_1 - a_0) sigmoid(s BN(gamma(x)) + b)

BN standardises gamma over a batch while training and by running statistics afterwards.  Trained on clean inputs and on
adversarial ones made against the *whole* mixture, with

    loss = c_1 BCE(gamma, 1[adversarial]) + c_2 CE(f, y) + c_3 BCE CE      (per example, then averaged).

Since a(x) >= a_0, certificates of the mixture with weight a_0 keep holding, whatever the policy has learnt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from holdfast.core.errors import InputError
from holdfast.inputs.features import Features


class MixingPolicy(nn.Module):
    """Weights of the robust model in [`least`, `most`], from features of both models.

    Parameters
    ----------
    standard_layers, robust_layers : names in `named_modules()` of the two models; their outputs are averaged over
        positions (see `inputs.features`).
    features : how many values they have together; `between` counts them.
    least, most : range of the weight, 0 <= least < most < 1; the certificates use `least`.
    hidden : width of the hidden layer.
    slope, shift : s and b above.
    generator : where the first weights come from; a fixed stream when None.

    Raises InputError for a range that is not one, or no layer.
    """

    def __init__(
        self,
        standard_layers: Sequence[str],
        robust_layers: Sequence[str],
        features: int,
        *,
        least: float = 0.84,
        most: float = 0.99,
        hidden: int = 64,
        slope: float = 2.0,
        shift: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= least < most < 1:
            raise InputError(f"a policy needs 0 <= least < most < 1, got {least} and {most}")
        if features < 1 or not standard_layers or not robust_layers:
            raise InputError("a policy needs at least one layer of each model to look at")
        self.standard_layers, self.robust_layers = tuple(standard_layers), tuple(robust_layers)
        self.least, self.most, self.slope, self.shift = float(least), float(most), float(slope), float(shift)
        first, last = skip_init(nn.Linear, features, hidden), skip_init(nn.Linear, hidden, 1)
        source = torch.Generator().manual_seed(0) if generator is None else generator
        for layer in (first, last):
            nn.init.kaiming_uniform_(layer.weight, a=1.0, generator=source)
            nn.init.zeros_(layer.bias)
        self.network = nn.Sequential(first, nn.ReLU(), last)
        self.normalise_features = nn.BatchNorm1d(features, affine=False)
        self.normalise_score = nn.BatchNorm1d(1, affine=False)

    @classmethod
    def between(
        cls,
        standard: nn.Module,
        robust: nn.Module,
        standard_layers: Sequence[str],
        robust_layers: Sequence[str],
        example: Float[Tensor, "batch *shape"],
        **options: float | int | torch.Generator | None,
    ) -> MixingPolicy:
        """A policy for two models, its input counted by passing `example` through them."""
        found = Features(standard, standard_layers)(example) + Features(robust, robust_layers)(example)
        width = sum(part.shape[1] for part in found)
        return cls(standard_layers, robust_layers, width, **options)  # type: ignore[arg-type]

    def look(
        self, standard: nn.Module, robust: nn.Module, x: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch features"], Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Features and the two models' logits, one pass of each, on the graph."""
        ours, standard_logits = Features(standard, self.standard_layers).tensors(x)
        theirs, robust_logits = Features(robust, self.robust_layers).tensors(x)
        return torch.cat([*ours, *theirs], 1), standard_logits, robust_logits

    def score(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """gamma: how much the input looks attacked."""
        return self.network(self.normalise_features(features)).squeeze(1)

    def weight(self, gamma: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """a(x), between `least` and `most`."""
        standard = self.normalise_score(gamma[:, None]).squeeze(1)
        return self.least + (self.most - self.least) * torch.sigmoid(self.slope * standard + self.shift)

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """a(x) from features."""
        return self.weight(self.score(features))


class MixingLoss(nn.Module):
    """c_1 BCE(gamma, adversarial) + c_2 CE + c_3 BCE CE, averaged over the batch; `weights` are (c_1, c_2, c_3).

    The product asks most of the policy where the mixture is wrong.  Raises InputError for a negative weight.
    """

    def __init__(self, weights: tuple[float, float, float] = (1.5, 0.0, 0.3)) -> None:
        super().__init__()
        if any(not weight >= 0 for weight in weights):
            raise InputError(f"the three weights of the loss must not be negative, got {weights}")
        self.weights = weights

    def forward(
        self,
        log_probabilities: Float[Tensor, "batch classes"],
        gamma: Float[Tensor, " batch"],
        y: Int[Tensor, " batch"],
        adversarial: Bool[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """The loss of the mixture's log-probabilities and the policy's scores for clean and adversarial inputs."""
        guess = F.binary_cross_entropy_with_logits(gamma, adversarial.to(gamma.dtype), reduction="none")
        error = F.nll_loss(log_probabilities, y, reduction="none")
        first, second, third = self.weights
        return (first * guess + second * error + third * guess * error).mean()
