"""Robust inference by crop selection: let the image choose which of its windows is classified.

An n x n image has k = n - m + 1 windows of m x m along each axis.  Each is scored by a function of its own pixels only,
and the model sees the window of highest score (ties: the first in reading order).  A shift of the camera keeps the
windows that both views share, so both choose the same pixels unless the winner leaves or a better one enters:

    P[same window] = |A n B| / |A u B| = q / (2 - q),     q = (k - |dy|)_+ (k - |dx|)_+ / k^2,

if any window of the union is equally likely to win.  With the score "hash", a keyed pseudo-random hash of the window's
8-bit pixels, that is so by construction (min-wise hashing; Broder, 1997): the formula holds in expectation over the key
for every image whose windows all differ.  With circular padding (`cyclic`) all n^2 windows are there in every view, so
a cyclic shift never changes the choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson
from holdfast.inputs.attack.loop import Model, forward
from holdfast.threats.places import Translation

#: Maps (batch, channels, height, width) to the scores (batch, rows, columns) of all windows, rows = height - m + 1.
WindowScore = Callable[[Tensor], Tensor]
_MIX = (-4658895280553007687, -7723592293110705685)  # odd 64-bit multipliers of the splitmix64 finaliser, as int64


class QuantisedWarning(UserWarning):
    """Pixels were rounded to 8 bits before they were hashed."""


class CropSelection(nn.Module):
    """A model that classifies the window each image itself selects.

    Parameters
    ----------
    model : maps (batch, channels, height, width) to logits (batch, classes).
    crop : side m of the window in pixels.
    score : "hash" (see the module), "filter" (size of a zero-mean filter's answer at the window's centre), "energy"
        (variance within the window), or a callable on images, a `WindowScore` of windows of side `crop`.
    cyclic : choose among all n^2 windows of the image repeated without end.
    votes : so many independent hash keys, each with its own window; the majority of their answers wins, ties by the
        mean softmax.
    resize : give the window to the model at the size of the image (bilinear); else as it is.
    key : names the hash.

    Raises InputError for a crop or number of votes below 1, an unknown score, votes without "hash", and when called on
    images smaller than the crop.
    """

    def __init__(
        self,
        model: nn.Module,
        crop: int,
        score: str | WindowScore = "hash",
        *,
        cyclic: bool = False,
        votes: int = 1,
        resize: bool = True,
        key: int = 0,
    ) -> None:
        super().__init__()
        if crop < 1:
            raise InputError(f"a crop has a side of at least one pixel, got {crop}")
        if isinstance(score, str) and score not in ("hash", "filter", "energy"):
            raise InputError(f"unknown score {score!r}; choose from hash, filter, energy, or give a callable")
        if votes < 1 or (votes > 1 and score != "hash"):
            raise InputError(f"votes must be at least 1, and only the score 'hash' has several, got {votes}, {score!r}")
        self.model, self.crop, self.score = model, crop, score
        self.cyclic, self.votes, self.resize, self.key = cyclic, votes, resize, key

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of the selected window; with v > 1 votes log((c + p) / (v + 1)), c the votes for each class and p the
        mean softmax, so that p, which has a gradient, decides between classes with equally many votes only.
        """
        answers = []
        for vote in range(self.votes):
            windows = self.selected(x, vote)
            if self.resize and len(x) == 0:
                windows = torch.zeros_like(x)
            elif self.resize and windows.shape[2:] != x.shape[2:]:
                windows = F.interpolate(windows, size=x.shape[2:], mode="bilinear", align_corners=False)
            answers.append(self.model(windows))
        if self.votes == 1:
            return answers[0]
        together = torch.stack(answers)
        counts = F.one_hot(together.argmax(2), together.shape[2]).sum(0)
        return ((counts + together.softmax(2).mean(0)) / (self.votes + 1)).log()

    def selected(
        self, x: Float[Tensor, "batch channels height width"], vote: int = 0
    ) -> Float[Tensor, "batch channels crop crop"]:
        """The chosen windows' pixels."""
        place, padded = self.places(x, vote), self._padded(x)
        if len(x) == 0:
            return x.new_zeros(0, x.shape[1], self.crop, self.crop)
        return torch.stack(
            [
                image[:, row : row + self.crop, column : column + self.crop]
                for image, (row, column) in zip(padded, place.tolist(), strict=True)
            ]
        )

    @torch.no_grad()
    def places(self, x: Float[Tensor, "batch channels height width"], vote: int = 0) -> Int[Tensor, "batch 2"]:
        """(row, column) of the chosen windows' top left pixels."""
        height, width = x.shape[2:]
        if self.crop > min(height, width):
            raise InputError(f"a crop of {self.crop} pixels does not fit images of {height}x{width}")
        if len(x) == 0:
            return torch.zeros(0, 2, dtype=torch.int64, device=x.device)
        scores = self._scores(self._padded(x), vote)
        best = _first_largest(scores.flatten(1))
        return torch.stack([best // scores.shape[2], best % scores.shape[2]], 1)

    def _padded(self, x: Tensor) -> Tensor:
        if not self.cyclic:
            return x
        rest = self.crop - 1
        return torch.cat([torch.cat([x, x[:, :, :rest]], 2), torch.cat([x, x[:, :, :rest]], 2)[..., :rest]], 3)

    def _scores(self, x: Tensor, vote: int) -> Tensor:
        if callable(self.score):
            return self.score(x)
        if self.score == "hash":
            return window_hash(x, self.crop, key=self.key + vote)
        if self.score == "energy":
            mean, square = (F.avg_pool2d(part, self.crop, stride=1).mean(1) for part in (x.double(), x.double() ** 2))
            return square - mean**2
        return filter_score(x, self.crop)


def _first_largest(scores: Shaped[Tensor, "batch windows"]) -> Int[Tensor, " batch"]:
    """argmax with ties to the first, which `torch.argmax` does not promise."""
    position = torch.arange(scores.shape[1], device=scores.device)
    return torch.where(scores == scores.amax(1, keepdim=True), position, scores.shape[1]).amin(1)


def window_hash(
    x: Float[Tensor, "batch channels height width"], crop: int, *, key: int = 0
) -> Int[Tensor, "batch rows columns"]:
    """A keyed 64-bit hash of the 8-bit pixels of every window of side `crop`; equal pixels, equal hash.

    The sum (mod 2^64) of keyed mixes of the pixels times an odd factor for their row and one for their column in the
    window, taken for all windows by separable sums, then mixed so that every bit depends on every other.
    Pixels that are not multiples of 1/255 are rounded, with a QuantisedWarning.
    """
    levels = (x.double() * 255).round()
    if float((levels - x.double() * 255).abs().max()) > 1e-3:
        warnings.warn("the hash sees 8-bit pixels; these were rounded to multiples of 1/255", QuantisedWarning, 2)
    generator = torch.Generator().manual_seed(key & (2**63 - 1))
    drawn = torch.randint(-(2**62), 2**62, (x.shape[1] + 2 * crop + 1,), generator=generator) * 2 + 1
    drawn = drawn.to(x.device)
    channel, row, column = drawn[: x.shape[1]], drawn[x.shape[1] : x.shape[1] + crop], drawn[x.shape[1] + crop : -1]
    # pixels enter through a keyed mix, so that the hash is not linear in them
    values = _mixed(levels.long() * channel[:, None, None] + drawn[-1]).sum(1)
    down = sum(values[:, i : values.shape[1] - crop + 1 + i] * row[i] for i in range(crop))
    assert isinstance(down, Tensor)
    across = sum(down[:, :, j : down.shape[2] - crop + 1 + j] * column[j] for j in range(crop))
    assert isinstance(across, Tensor)
    return _mixed(across + drawn[-1])


def _mixed(bits: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The finaliser of splitmix64 on int64, whose arithmetic wraps; right shifts are made logical by a mask."""
    for shift, factor in ((30, _MIX[0]), (27, _MIX[1])):
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


def filter_score(x: Float[Tensor, "batch channels height width"], crop: int) -> Float[Tensor, "batch rows columns"]:
    """|3x3 Laplacian of the mean channel| at each window's centre pixel; for windows of at least 3 pixels."""
    if crop < 3:
        raise InputError(f"the filter score needs a crop of at least 3 pixels, got {crop}")
    kernel = torch.tensor([[1.0, 1, 1], [1, -8, 1], [1, 1, 1]], dtype=x.dtype, device=x.device)[None, None]
    answer = F.conv2d(x.mean(1, keepdim=True), kernel)[:, 0].abs()  # pixel (1, 1) first
    first = crop // 2 - 1
    return answer[:, first : first + x.shape[2] - crop + 1, first : first + x.shape[3] - crop + 1]


def consistency_bound(n: int, m: int, shift: tuple[int | float, int | float]) -> float:
    """q / (2 - q): chance that an n x n view and one shifted by `shift` (down, right) select the same m x m window.

    Raises InputError when the crop is larger than the image, or the shift is not by whole pixels.
    """
    down, right = (_whole(part, "a shift") for part in shift)
    if not 1 <= m <= n:
        raise InputError(f"a crop of {m} pixels does not fit a view of {n}")
    k = n - m + 1
    q = max(k - abs(down), 0) * max(k - abs(right), 0) / k**2
    return q / (2 - q)


def _whole(pixels: int | float, what: str) -> int:
    if not float(pixels).is_integer():
        raise InputError(f"{what} is a whole number of pixels, got {pixels}; parts of a pixel would need resampling")
    return int(pixels)


def shift_consistency(
    model: Model,
    images: Float[Tensor, "batch channels height width"],
    window: int,
    px: int | float = 1,
    level: float = 0.95,
) -> Estimate:
    """Share of images whose answer is the same for the middle view of side `window` and all its moves by up to px.

    Moves reveal real pixels of the image.  Raises InputError when the image has no margin of px around the view, or px
    is no whole number of at least 1.
    """
    return clopper_pearson(int(stable_under_moves(model, images, window, px).sum()), len(images), level)


def stable_under_moves(
    model: Model, images: Float[Tensor, "batch channels height width"], window: int, px: int | float = 1
) -> Bool[Tensor, " batch"]:
    """Whether every move by up to px leaves the answer to the middle view as it is."""
    px = _whole(px, "a move")
    side = window + 2 * px
    top, left = ((size - side) // 2 for size in images.shape[2:])
    if min(top, left) < 0:
        raise InputError(
            f"views of {window} pixels moved by {px} need images of {side} pixels, got {tuple(images.shape[2:])}"
        )
    middle = images[:, :, top : top + side, left : left + side]
    threat = Translation(px, "reveal")
    answers = torch.stack([forward(model, threat.moved(middle, move)).argmax(1) for move in threat.moves()])
    return (answers == answers[0]).all(0)
