"""Check of `thermal-detect`: what detectors of people take fire for, with and without fire in their training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Cell, Table
from holdfast.core.seeds import numpy_generator
from holdfast.inputs.boxes import (
    BoxMatches,
    FalsePositives,
    false_positives_by_cause,
    match,
    percentile_interval,
    resampled_ap,
)
from holdfast.inputs.corruption.thermal import (
    NAMES,
    PERSON,
    ThermalFrames,
    ThermalScene,
    detector_input,
    gain_control,
    hot_regions,
)
from holdfast.papers.centre_detector import CentreDetector, detect, fit_detector
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="thermal-detect",
    group="inputs",
    title="WIT-UAS: A Wildland-fire Infrared Thermal Dataset to Detect Crew Assets From Aerial Views",
    builds=(
        "holdfast.inputs.corruption.thermal.ThermalScene",
        "holdfast.inputs.corruption.thermal.gain_control",
        "holdfast.inputs.corruption.thermal.hot_regions",
        "holdfast.inputs.boxes.false_positives_by_cause",
        "holdfast.inputs.boxes.match",
        "holdfast.inputs.boxes.resampled_ap",
        "holdfast.inputs.boxes.read_yolo",
    ),
    claim=(
        "Infrared detectors trained without fire often report fire as people; adding frames with fire to the training "
        "set lowers their false positives a great deal, yet scenes with fire stay harder than scenes without."
    ),
    reference="Jong et al., IROS 2023",
)

SEEDS = (0, 1, 2)
FLIGHTS, FRAMES, TESTED, STEPS = 60, 10, 300, 200
RECALL, HOT, RESAMPLES = 0.6, 60.0, 500
#: IoU at which a detection is no false positive: a person of 3 pixels found one pixel aside is found all the same.
NEAR = 0.3


@dataclass(frozen=True)
class _Tested:
    """One model on the frames with and without fire."""

    burning: BoxMatches
    quiet: BoxMatches
    detections: list[dict[str, np.ndarray]]


def check(scale: Scale) -> Outcome:
    """(a) gain control keeps order, (b) detectors trained without fire (A), with fire (B) and with both (A+B)."""
    full = scale is Scale.FULL
    burning, quiet = (_frames(fire, TESTED // FRAMES if full else 3, "test", 0) for fire in (True, False))
    criteria = [_order(burning, quiet)]
    if not full:
        return Outcome(tuple(criteria), seeds=SEEDS[:1])
    tested = _train_and_test(burning, quiet)
    fires = {"fire": hot_regions(burning.raw, celsius=HOT)}
    false = {
        name: [
            false_positives_by_cause(
                model.detections, burning.truth, fires, recall=RECALL, threshold=NEAR, classes=(0, 1)
            )
            for model in models
        ]
        for name, models in tested.items()
    }
    draws = numpy_generator(SEEDS[0], PAPER.key, "bootstrap").integers(0, TESTED, (RESAMPLES, TESTED))
    drawn = np.concatenate([np.arange(TESTED)[None], draws])
    people = {name: _ap(models, drawn, "burning", PERSON) for name, models in tested.items()}
    criteria += [
        *_less_fire(false, drawn),
        _criterion("AP at IoU .50 of people in scenes with fire rises when fire is added (A to A+B)", people, "A"),
        *_harder(tested, drawn),
    ]
    reduction = _estimate(_share_gone(false, drawn, "fire"))
    table = _table(tested, false, drawn)
    with_all = _estimate(_share_gone(false, drawn, None))
    notes = (
        f"Synthetic frames of 64 pixels, {FLIGHTS * FRAMES} to train on in each set, {TESTED} with and {TESTED} "
        "without fire to test on, all from flights of their own; equal steps of training; three seeds, averaged. Hot "
        f"pixels are those from {HOT:g} °C; a detection within IoU {NEAR:g} of an object is no false positive. Of all "
        f"false positives of people at recall {RECALL:g} in scenes with fire, {with_all} are gone with A+B. The "
        "detector that saw nothing but fire (B) does worse on frames without, whose equalised noise it never saw, than "
        "on its own ground: that scenes with fire are harder holds for detectors that know both. The paper trains SSD "
        "and YOLO on real flights; nothing here is real but the sensor's range of temperatures."
    )
    return Outcome(tuple(criteria), reduction, None, (table,), SEEDS, notes)


def _frames(fire: bool, flights: int, *path: str | int) -> ThermalFrames:
    generator = numpy_generator(SEEDS[0], PAPER.key, "fire" if fire else "quiet", *path)
    return ThermalScene(fire=fire).render(flights, FRAMES, generator)


def _order(*sets: ThermalFrames) -> Criterion:
    """In every frame, sorted by counts, 8-bit levels never fall."""
    broken = 0
    for frames in sets:
        for mode in ("percentile", "plateau"):
            levels = gain_control(frames.raw, mode)
            for counts, made in zip(frames.raw, levels, strict=True):
                ordered = made.ravel()[np.lexsort((made.ravel(), counts.ravel()))]
                broken += int((np.diff(ordered.astype(np.int64)) < 0).any())
                values = np.unique(counts, return_inverse=True)[1].ravel()
                spread = np.bincount(values, made.ravel()) / np.bincount(values)
                broken += int((spread[values] != made.ravel()).any())
    return Criterion(
        "gain control maps every frame by a non-decreasing function of its counts", broken == 0, {"frames": broken}
    )


def _train_and_test(burning: ThermalFrames, quiet: ThermalFrames) -> dict[str, list[_Tested]]:
    views = [detector_input(gain_control(frames.raw)) for frames in (burning, quiet)]
    tested: dict[str, list[_Tested]] = {"A": [], "B": [], "A+B": []}
    for seed in SEEDS:
        without, with_fire = (_frames(fire, FLIGHTS, "train", seed) for fire in (False, True))
        for name, parts in {"A": [without], "B": [with_fire], "A+B": [without, with_fire]}.items():
            x = np.concatenate([detector_input(gain_control(part.raw)) for part in parts])
            truth = [image for part in parts for image in part.truth]
            (model,) = fit_detector(
                CentreDetector(2, channels=1, width=16, stride=2), x, truth, name, seed=seed, steps=STEPS
            )
            found = [detect(model, view, most=30, lowest=1e-3) for view in views]
            burns, calm = (
                match(detections, frames.truth, thresholds=(0.5,), areas={"all": (0.0, 1e10)}, classes=(0, 1))
                for detections, frames in zip(found, (burning, quiet), strict=True)
            )
            tested[name].append(_Tested(burns, calm, found[0]))
    return tested


def _ap(models: list[_Tested], drawn: np.ndarray, where: str, label: int | None) -> Float[np.ndarray, " resamples"]:
    """AP at IoU .50 averaged over seeds, of one class or both."""
    return np.asarray(np.mean([resampled_ap(getattr(model, where), drawn, label=label) for model in models], axis=0))


def _estimate(replicates: Float[np.ndarray, " resamples"]) -> Estimate:
    return percentile_interval(float(replicates[0]), replicates[1:], TESTED)


def _counts(false: list[FalsePositives], drawn: np.ndarray, cause: str | None) -> Float[np.ndarray, " resamples"]:
    """False positives of people an image, averaged over seeds."""
    return np.asarray(np.mean([part.counts(cause, PERSON)[drawn].mean(1) for part in false], axis=0))


def _share_gone(
    false: dict[str, list[FalsePositives]], drawn: np.ndarray, cause: str | None
) -> Float[np.ndarray, " resamples"]:
    return 1 - _counts(false["A+B"], drawn, cause) / np.maximum(_counts(false["A"], drawn, cause), 1 / TESTED)


def _less_fire(false: dict[str, list[FalsePositives]], drawn: np.ndarray) -> tuple[Criterion, Criterion]:
    a, both = (_counts(false[name], drawn, "fire") for name in ("A", "A+B"))
    fewer, gone = _estimate(a - both), _estimate(_share_gone(false, drawn, "fire"))
    return (
        Criterion(
            f"people seen in fire are fewer with A+B than with A at recall {RECALL:g} (95% bootstrap interval)",
            fewer.low > 0,
            {"A": _estimate(a), "B": _estimate(_counts(false["B"], drawn, "fire")), "A+B": _estimate(both)},
        ),
        Criterion("at least half of them are gone", gone.value >= 0.5, {"share gone": gone}),
    )


def _criterion(statement: str, people: dict[str, Float[np.ndarray, " resamples"]], before: str) -> Criterion:
    change = _estimate(people["A+B"] - people[before])
    numbers = {f"AP50 of people, {name}": _estimate(ap) for name, ap in people.items()}
    return Criterion(f"{statement} (95% bootstrap interval)", change.low > 0, {**numbers, "change": change})


def _harder(tested: dict[str, list[_Tested]], drawn: np.ndarray) -> tuple[Criterion, Criterion]:
    """Frames with and without fire are different ones, so their resamples are independent."""
    again = numpy_generator(SEEDS[0], PAPER.key, "quiet").integers(0, TESTED, (RESAMPLES, TESTED))
    other = np.concatenate([np.arange(TESTED)[None], again])
    gaps = {
        name: {
            f"{name}, seed {seed}": _estimate(_ap([model], other, "quiet", None) - _ap([model], drawn, "burning", None))
            for seed, model in zip(SEEDS, models, strict=True)
        }
        for name, models in tested.items()
    }
    known, strange = gaps["A"] | gaps["A+B"], gaps["B"]
    statement = "has lower AP at IoU .50 in scenes with fire than without (95% bootstrap intervals)"
    return (
        Criterion(f"every model of A and A+B {statement}", all(gap.low > 0 for gap in known.values()), known),
        Criterion(f"every model of B {statement}", all(gap.low > 0 for gap in strange.values()), strange),
    )


def _table(tested: dict[str, list[_Tested]], false: dict[str, list[FalsePositives]], drawn: np.ndarray) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            name,
            *(_estimate(_ap(models, drawn, "burning", label)) for label in range(len(NAMES))),
            _estimate(_ap(models, drawn, "quiet", None)),
            _estimate(_counts(false[name], drawn, "fire")),
            _estimate(_counts(false[name], drawn, None)),
        )
        for name, models in tested.items()
    )
    return Table(
        "Training without fire (A), with fire (B) and with both",
        (
            "trained on",
            *(f"AP50, {name}, fire" for name in NAMES),
            "AP50, no fire",
            "people seen in fire, an image",
            "all false people, an image",
        ),
        rows,
        caption=f"False positives at the score where {RECALL:.0%} of the people are found.",
    )
