"""Check of `crop-selection`: how often two shifted views choose the same window, and what that does to answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import clopper_pearson, mcnemar
from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.crop import CropSelection, consistency_bound, stable_under_moves
from holdfast.inputs.attack.loop import forward
from holdfast.papers import datasets
from holdfast.papers.bench_models.networks import initialise
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="crop-selection",
    group="inputs",
    title="Robust inference by crop selection and realistic translations",
    builds=(
        "holdfast.inputs.attack.crop.CropSelection",
        "holdfast.inputs.attack.crop.consistency_bound",
        "holdfast.inputs.attack.crop.shift_consistency",
        "holdfast.inputs.attack.shifts.ShiftAttack",
    ),
    claim=(
        "Moves of one pixel that reveal real pixels change the answers of image classifiers; letting the image choose "
        "which crop is classified makes answers consistent at a small cost in accuracy, and perfectly so for cyclic "
        "shifts."
    ),
)

SEED = 0
MOVES = ((0, 1), (1, 0), (1, 1))
VIEW, CROP = 30, 22


def check(scale: Scale) -> Outcome:
    """(a) same-window rates against the formula, (b) cyclic shifts, (c) answers of a CNN with and without selection."""
    full = scale is Scale.FULL
    rates = _noise_rates(20_000 if full else 2_000, (9, 15, 21) if full else (9,))
    if full:
        rates |= _photograph_rates()
    cyclic_images = datasets.cifar10("test", 1000)[0] if full else datasets.digits(100)[0]
    changes = _cyclic_changes(torch.from_numpy(cyclic_images), rolls=64 if full else 8)
    criteria = [
        _formula(rates),
        Criterion("no cyclic shift ever changes the chosen pixels", changes == 0, {"changes": changes}),
    ]
    ours = baseline = None
    notes = ""
    if full:
        answers = _answers()
        criteria.append(answers[0])
        ours, baseline, notes = answers[1], answers[2], answers[3]
    table = Table(
        "How often a shifted view chooses the same window",
        ("images", "measured", "formula q / (2 - q)"),
        tuple((name, rate, wanted) for name, (rate, wanted) in rates.items()),
        caption="Intervals hold for all rows at once with probability 99%.",
    )
    return Outcome(tuple(criteria), ours, baseline, (table,), (SEED,), notes)


def _formula(rates: dict[str, tuple[Estimate, float]]) -> Criterion:
    inside = {name: rate.low <= wanted <= rate.high for name, (rate, wanted) in rates.items()}
    return Criterion(
        f"the hash chooses the same window as often as q / (2 - q) says, in all of {len(rates)} cases (99% intervals, "
        "Bonferroni)",
        all(inside.values()),
        {name: rate for name, (rate, _) in rates.items()},
    )


def _noise_rates(pairs: int, ks: tuple[int, ...]) -> dict[str, tuple[Estimate, float]]:
    """Independent noise images; windows of 4 pixels, so that k choices an axis need few pixels."""
    rates: dict[str, tuple[Estimate, float]] = {}
    for k in ks:
        side, crop = k + 3, 4
        generator = torch_generator(SEED, PAPER.key, "noise", k)
        images = torch.randint(256, (pairs, 1, side + 1, side + 1), generator=generator) / 255.0
        rates |= _rates(f"noise, k={k}", images, side, crop, (SEED,))
    return rates


def _photograph_rates() -> dict[str, tuple[Estimate, float]]:
    images = torch.from_numpy(datasets.cifar10("test", 1000)[0])
    rates: dict[str, tuple[Estimate, float]] = {}
    for k in (9, 15, 21):
        rates |= _rates(f"CIFAR-10, k={k}", images, VIEW, VIEW - k + 1, tuple(range(10)))
    return rates


def _rates(name: str, images: Tensor, side: int, crop: int, keys: tuple[int, ...]) -> dict[str, tuple[Estimate, float]]:
    """Same-window rate of two views of `side` pixels under every move, over images and hash keys."""
    same = dict.fromkeys(MOVES, 0)
    for key in keys:
        select = CropSelection(nn.Identity(), crop, key=key)
        first = select.places(images[:, :, :side, :side])
        for down, right in MOVES:
            second = select.places(images[:, :, down : down + side, right : right + side])
            same[down, right] += int((second + torch.tensor([down, right]) == first).all(1).sum())
    level = 1 - 0.01 / 18  # nine cases of noise and nine of photographs
    return {
        f"{name}, move {move}": (
            clopper_pearson(count, len(images) * len(keys), level),
            consistency_bound(side, crop, move),
        )
        for move, count in same.items()
    }


def _cyclic_changes(images: Tensor, rolls: int) -> int:
    """How often the chosen pixels differ from those of the unrolled image."""
    select = CropSelection(nn.Identity(), images.shape[2] // 2, cyclic=True)
    images = (images * 255).round() / 255
    generator = torch_generator(SEED, PAPER.key, "rolls")
    chosen, changes = select.selected(images), 0
    for _ in range(rolls):
        down, right = (int(torch.randint(1, side, (), generator=generator)) for side in images.shape[2:])
        again = select.selected(images.roll((down, right), dims=(2, 3)))
        changes += int((again != chosen).flatten(1).any(1).sum())
    return changes


def _answers() -> tuple[Criterion, Estimate, Estimate, str]:
    """A CNN trained on random crops, fooled by the eight one-pixel moves with and without selection."""
    model = _trained()
    x, y = (torch.from_numpy(part) for part in datasets.cifar10("test"))
    x = (x * 255).round() / 255
    plain = _Centre(model)
    variants = {
        "hash": CropSelection(model, CROP, resize=False),
        "hash, 9 votes": CropSelection(model, CROP, votes=9, resize=False),
        "filter": CropSelection(model, CROP, "filter", resize=False),
    }
    fooled = {name: ~stable_under_moves(wrapped, x, VIEW, 1).numpy() for name, wrapped in variants.items()}
    fooled_plain = ~stable_under_moves(plain, x, VIEW, 1).numpy()
    view = x[:, :, 1 : 1 + VIEW, 1 : 1 + VIEW]
    accuracy = {name: _accuracy(wrapped, view, y) for name, wrapped in {"centre crop": plain, **variants}.items()}
    test = mcnemar(fooled_plain, fooled["hash"])
    ours, baseline = (clopper_pearson(int(part.sum()), len(x)) for part in (fooled["hash"], fooled_plain))
    numbers: dict[str, Estimate | float | int] = {
        "fooled, centre crop": baseline,
        **{f"fooled, {name}": clopper_pearson(int(part.sum()), len(x)) for name, part in fooled.items()},
        **{f"accuracy, {name}": value for name, value in accuracy.items()},
        "McNemar p": test.exact_p,
    }
    criterion = Criterion(
        "selection by hash lowers the share of images whose answer one of the eight one-pixel moves changes (McNemar p "
        "< 0.01)",
        ours.value < baseline.value and test.exact_p < 0.01,
        numbers,
    )
    notes = (
        f"Views of {VIEW} pixels, crops of {CROP} (k = 9), a small CNN trained on random crops of 10 000 images; 1 000 "
        "test images.  The paper's models are larger and see 224 pixels, where "
        "k can be much larger."
    )
    return criterion, ours, baseline, notes


class _Centre(nn.Module):
    """The usual way: classify the centre crop."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        top, left = ((side - CROP) // 2 for side in x.shape[2:])
        return self.model(x[:, :, top : top + CROP, left : left + CROP])


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> Estimate:
    return clopper_pearson(int((forward(model, x).argmax(1) == y).sum()), len(x))


def _trained(epochs: int = 8) -> nn.Module:
    model = nn.Sequential(
        nn.utils.skip_init(nn.Conv2d, 3, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.utils.skip_init(nn.Conv2d, 24, 48, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.utils.skip_init(nn.Conv2d, 48, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.utils.skip_init(nn.Linear, 64 * 25, 10),
    )
    initialise(model, torch_generator(SEED, PAPER.key, "weights"))
    x, y = (torch.from_numpy(part) for part in datasets.cifar10("train"))
    generator = torch_generator(SEED, PAPER.key, "order")
    steps = epochs * -(-len(x) // 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(64):
            top, left = torch.randint(x.shape[2] - CROP + 1, (2,), generator=generator).tolist()
            optimizer.zero_grad()
            F.cross_entropy(model(x[index, :, top : top + CROP, left : left + CROP]), y[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()
