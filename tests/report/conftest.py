"""A run folder as an audit would leave it, made without one: every exhibit kind, hostile and long names, a skipped
probe."""

# ruff: noqa: E501 - sentences as a probe would write them

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from holdfast.audit.pictures import encode_png
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import (
    Bars,
    Curve,
    Gallery,
    Heatmap,
    Histogram,
    Picture,
    Reliability,
    Series,
    Table,
)
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.store.files import Folder
from holdfast.store.manifest import FINDINGS, MANIFEST, write_json
from holdfast.store.shards import write_shard

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "$\\frac{",
    "{{ 7 * 7 }}",
    "a class with a name that somebody typed without ever thinking of the person who has to read the table it ends up in",
    "\u202ereversed\u0007",
    "鹤 🦩",
    "</title></svg><iframe src=//evil>",
    "tab\tnew\nline | pipe `tick` *star* [link](javascript:alert(3))",
    "'; DROP TABLE findings; --",
)
PLAIN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WEAR = (
    "gaussian noise", "shot noise", "impulse noise", "defocus blur", "glass blur", "motion blur", "zoom blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic", "pixelate", "jpeg",
)  # fmt: skip


def mean_of(values: np.ndarray, level: float = 0.95) -> Estimate:
    values = np.asarray(values, dtype=float)
    half = 2.3 * values.std() / np.sqrt(len(values)) + 1 / len(values)
    value = float(values.mean())
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), level, len(values), "betting")


def percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}% (between {100 * estimate.low:.1f} and {100 * estimate.high:.1f}%)"


def build_run(
    folder: str | Path,
    *,
    seed: int = 0,
    examples: int = 600,
    names: tuple[str, ...] = PLAIN,
    skill: float = 0.95,
    status: str = "complete",
    data: str = "d41d8c",
    keep: float = 1.0,
) -> str:
    """Write a run of a model of this `skill` on the first `keep` of the test data; returns the folder."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(7)
    place = Folder(str(folder))
    index = truth.permutation(examples)[: int(keep * examples)].astype(np.int64)
    count = len(index)
    labels = truth.integers(0, 10, examples).astype(np.int64)[index]
    correct = rng.random(count) < skill
    prediction = np.where(correct, labels, (labels + rng.integers(1, 10, count)) % 10)
    logits = rng.normal(size=(count, 10)).astype(np.float32)
    logits[np.arange(count), prediction] += 6
    robust = correct & (rng.random(count) < 0.12)
    severity = np.linspace(0.99, 0.6, 5) * np.linspace(1.0, 0.8, 15)[:, None]
    worn = correct[:, None, None] & (rng.random((count, 15, 5)) < severity)
    write_shard(place, "clean", 0, {"index": index, "label": labels, "prediction": prediction, "logits": logits})
    for start in (0, count // 2):
        rows = slice(start, start + count // 2 if start == 0 else count)
        shard = 0 if start == 0 else 1
        write_shard(place, "accuracy", shard, {"index": index[rows], "correct": correct[rows]})
        write_shard(place, "adversarial", shard, {"index": index[rows], "robust": robust[rows]})
        write_shard(place, "corruption", shard, {"index": index[rows], "correct": worn[rows]})
    sections = [
        accuracy_section(correct, labels, prediction, names),
        calibration_section(rng, count),
        adversarial_section(robust, correct, index, names),
        certified_section(correct),
        corruption_section(worn),
        ood_section(rng),
        labels_section(names),
        Section("leakage", "Has the model seen the test data before?",
                "Not examined: it needs the training data; give it with --train.", (), status="skipped"),
        weights_section(correct),
        conformal_section(names),
        Section("disparity", "Are all classes and groups served alike?",
                "This probe failed (ZeroDivisionError: division by zero); errors/disparity.txt in the run folder has the details.",
                (), status="failed"),
    ]  # fmt: skip
    doubt = Doubt(
        "inputs look standardised",
        "The inputs reach from −2.1 to 2.6, but the model says it takes values in [0, 1].",
        advice="Put the normalisation inside the model, or give --range.",
    )
    write_json(
        place,
        FINDINGS,
        {"sections": [s.to_dict() for s in sections], "doubts": [] if names == PLAIN else [doubt.to_dict()]},
    )
    write_json(place, MANIFEST, manifest(names, examples, status, data, seed, skill))
    return str(folder)


def manifest(names, examples, status, data, seed, skill):
    return {
        "holdfast_version": "0.1.0",
        "created": "2026-03-01T10:20:30+00:00",
        "status": status,
        "stopped_because": "" if status == "complete" else "the time budget of 2 minutes was spent",
        "identity": {"subject": f"{data}-{skill}", "seed": 0, "threat": "Linf(eps=0.1)"},
        "subject": {
            "name": "small CNN" if names == PLAIN else "<b>CNN</b> & friends",
            "source": "digits (embedded)",
            "classes": 10,
            "class_names": list(names),
            "shape": [1, 8, 8],
            "modality": "image",
            "access": "gradients",
            "test_examples": examples,
            "train_examples": 0,
            "fingerprint": f"{data}-{skill}",
            "data_fingerprint": data,
        },
        "settings": {
            "threat": "every pixel moved by at most 0.1",
            "seed": seed,
            "level": 0.95,
            "precision": None,
            "minutes": 2.0,
            "limit": None,
            "probes": ["accuracy", "calibration", "adversarial"],
        },
        "arguments": {},
        "command": ["/usr/local/bin/holdfast", "audit", "models/my cnn.py:build", "--weights", "w.safetensors",
                    "--out", "runs/a", "--minutes", "2"],
        "versions": {"python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.0"},
        "machine": "x86_64, 2 cores, Linux",
        "seconds": 83.4,
    }  # fmt: skip


def accuracy_section(correct, labels, prediction, names):
    overall = mean_of(correct)
    per_class = tuple(mean_of(correct[labels == k]) for k in range(10))
    worst = int(np.argmin([estimate.value for estimate in per_class]))
    confusion = np.zeros((10, 10))
    np.add.at(confusion, (labels, prediction), 1)
    return Section(
        "accuracy",
        "How often is the model right on data like the test set?",
        f"It is right on {percent(overall)} of the test examples; least often on {names[worst]}.",
        (
            Finding("accuracy", "accuracy", overall, f"The model is right on {percent(overall)}.", headline=True, column="correct"),
            Finding("accuracy", "worst_class", per_class[worst], f"On {names[worst]} it is right {percent(per_class[worst])} of the time."),
        ),
        (
            Bars("Accuracy of every class", "accuracy", names, per_class, "Lines are 95% intervals.", overall.value, (0.0, 1.0)),
            Heatmap("Where the mistakes go", names, names,
                    tuple(tuple(float(v) for v in row) for row in confusion / confusion.sum(1, keepdims=True)),
                    "Rows are the truth, columns what the model said.", "share of the row", (0.0, 1.0), False),
            Table("Per class", ("class", "accuracy", "examples"),
                  tuple((name, e, int((labels == k).sum())) for k, (name, e) in enumerate(zip(names, per_class)))),
        ),
        method="Every test example once, in random order; the interval is anytime-valid (betting).",
        advice="Collect more training examples of the worst class.",
        examined=len(correct), available=len(correct), seconds=0.4,
    )  # fmt: skip


def calibration_section(rng, count):
    confidence = tuple(np.linspace(0.45, 0.98, 9))
    counts = tuple(int(n) for n in np.round(count * np.array([1, 1, 2, 2, 4, 6, 10, 20, 54]) / 100))
    accuracy = tuple(mean_of(rng.random(max(n, 8)) < 0.9 * c) for n, c in zip(counts, confidence))
    ece = Estimate(0.071, 0.048, 0.093, n=count, method="bootstrap")
    return Section(
        "calibration",
        "When it says 90%, is it right 90% of the time?",
        f"It is too sure of itself: on average its confidence and its accuracy differ by {percent(ece)}.",
        (
            Finding("calibration", "ece", ece, f"Confidence is off by {percent(ece)}.", direction="lower is better",
                    headline=True, remedies=("temperature",)),
            Finding("calibration", "brier", Estimate(0.0912, 0.081, 0.103), "The Brier score is 0.091.", unit="score",
                    direction="lower is better"),
        ),
        (Reliability("Confidence against truth", confidence, accuracy, counts, "On the dashed line the model is honest."),),
        method="Expected calibration error over 15 equal-mass bins, debiased; interval by bootstrap.",
        advice="Fit a temperature on held-out data: `holdfast harden --remedy temperature`.",
        examined=count, available=count, seconds=1.2,
    )  # fmt: skip


@cache
def digits() -> np.ndarray:
    return load_digits().images / 16


def digit(position: int) -> np.ndarray:
    return digits()[position]


def adversarial_section(robust, correct, index, names):
    rng = np.random.default_rng(5)
    at = mean_of(robust)
    radius = np.array([0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2])
    curve = correct.mean() * np.exp(-((radius / 0.07) ** 1.5))
    pictures = tuple(
        Picture(
            f"{names[k % 10]} → {names[(k + 3) % 10]}",
            encode_png(np.clip(digit(k) + rng.choice([-0.1, 0.1], (8, 8)), 0, 1)),
            encode_png(digit(k)),
            text=f"test example {int(index[k])}",
        )
        for k in range(12)
    )
    return Section(
        "adversarial",
        "Does it hold when somebody wants it to fail?",
        f"No: when every pixel may move by at most 0.1, {percent(at)} of the examples stay right.",
        (
            Finding("adversarial", "accuracy", at, f"Under attack {percent(at)} stay right.", headline=True, column="robust",
                    remedies=("adversarial-training", "smoothing")),
            Finding("adversarial", "median_radius", Estimate(0.052, 0.049, 0.055), "Half of the examples fall within 0.052.",
                    unit="pixel range"),
        ),
        (
            Curve("Accuracy against the size of the perturbation", "radius (L∞)", "accuracy",
                  (Series("APGD, worst case", tuple(radius), tuple(curve), tuple(np.maximum(curve - 0.04, 0)), tuple(curve + 0.02)),),
                  "The band is the 95% interval.", y_limits=(0.0, 1.0)),
            Gallery("The smallest changes that fooled it", pictures, "Before and after; the label is truth → answer."),
        ),
        (Doubt("radius too large to tell", "At radius 0.2 nearly every example falls, so the last points say little.",
               ("adversarial.median_radius",), "Look at radii up to 0.1."),),
        method="APGD with 100 steps and 5 restarts on the difference-of-logits loss, then PGD-40; worst case per example.",
        advice="Train with perturbed examples, or wrap the model in randomised smoothing.",
        examined=len(robust), available=len(robust), seconds=42.0,
    )  # fmt: skip


def certified_section(correct):
    low = mean_of(np.arange(len(correct)) < 0.03 * len(correct))
    radius = tuple(np.linspace(0, 0.1, 60))
    return Section(
        "certified", "For how many inputs is that proven?", f"For {percent(low)} no perturbation of that size can change the answer.",
        (Finding("certified", "accuracy", low, f"{percent(low)} are proven.", headline=True),),
        (Curve("Proven and attacked accuracy", "radius (L∞)", "accuracy", (
            Series("CROWN, proven", radius, tuple(0.95 * np.exp(-np.array(radius) * 60))),
            Series("IBP, proven", radius, tuple(0.95 * np.exp(-np.array(radius) * 120))),
            Series("attacked", radius, tuple(0.95 * np.exp(-np.array(radius) * 20))),
        ), "Truth lies between the proven and the attacked line.", y_limits=(0.0, 1.0)),),
        method="Backward CROWN over the traced graph, in float64.", examined=400, available=600, status="partial", seconds=12.3,
    )  # fmt: skip


def corruption_section(worn):
    overall = mean_of(worn.mean(axis=(1, 2)))
    table = worn.mean(axis=0)
    return Section(
        "corruption", "Does it hold in bad weather?", f"Averaged over 15 kinds of wear, {percent(overall)} stay right.",
        (Finding("corruption", "accuracy", overall, f"{percent(overall)} stay right.", headline=True, column="correct"),),
        (Heatmap("Accuracy under every kind of wear", WEAR, ("1", "2", "3", "4", "5"),
                 tuple(tuple(float(v) for v in row) for row in table), "Severity grows to the right.", "accuracy in %", (0.0, 1.0)),),
        method="Fifteen families at five severities, each example under each.", advice="Augment with noise and blur.",
        examined=len(worn), available=len(worn), seconds=9.9,
    )  # fmt: skip


def ood_section(rng):
    edges = tuple(np.linspace(0, 1, 31))
    groups = tuple(
        (name, tuple(np.histogram(rng.beta(a, b, n), edges)[0].astype(float)))
        for name, a, b, n in (("test data", 8, 2, 900), ("corrupted", 3, 3, 450))
    )
    auroc = Estimate(0.87, 0.84, 0.9)
    return Section(
        "detection", "Does it notice when an input does not belong?", f"A foreign input looks stranger with probability {percent(auroc)}.",
        (Finding("detection", "auroc", auroc, f"AUROC {percent(auroc)}.", headline=True),),
        (Histogram("How familiar inputs look to the model", "energy score", edges, groups, "Less overlap is better."),),
        method="Energy of the logits.", examined=600, available=600,
    )  # fmt: skip


def labels_section(names):
    share = Estimate(0.012, 0.006, 0.019)
    rows = tuple(
        Picture(
            f"labelled {names[k]}",
            fields=(("age", "17 (typical 38.5)"), (names[k], "4.1 (typical 3.9)")),
            text=names[k],
        )
        for k in range(4)
    )
    images = tuple(
        Picture(f"labelled {names[(k + 1) % 10]}, looks like {names[k]}", encode_png(digit(k))) for k in range(8)
    )
    return Section(
        "labels", "Is the answer key right?", f"About {percent(share)} of the test labels are probably wrong.",
        (Finding("labels", "wrong", share, f"{percent(share)} are suspicious.", direction="lower is better", headline=True),),
        (Gallery("Most suspicious labels", images), Gallery("The same as rows", rows, "Typical is the median."),
         Table("Ranked", ("example", "given", "guessed", "confidence"),
               tuple((k, names[k % 10], names[(k + 1) % 10], 0.99 - 0.01 * k) for k in range(30)))),
        (Doubt("weak guide", "The model is wrong on 5% of the data itself, so some of these are its own mistakes.", ("labels.wrong",)),),
        method="Confident learning.", advice="Look at the first twenty.", examined=600, available=600,
    )  # fmt: skip


def weights_section(correct):
    int8 = mean_of(correct)
    return Section(
        "weights", "Does it survive rounding?", f"With eight-bit weights {percent(int8)} stay right.",
        (Finding("weights", "int8_accuracy", int8, f"{percent(int8)}.", headline=True),),
        (Curve("Noise on the weights", "relative noise", "accuracy",
               (Series("mean of 5 draws", (0.001, 0.01, 0.1, 1.0), (0.95, 0.94, 0.81, 0.11)),), x_log=True, y_limits=(0.0, 1.0)),),
        method="Symmetric per-channel quantisation.", examined=600, available=600,
    )  # fmt: skip


def conformal_section(names):
    coverage = Estimate(0.902, 0.88, 0.923)
    return Section(
        "conformal", "Can it say which answers are possible?", f"Sets hold the truth for {percent(coverage)}.",
        (Finding("conformal", "coverage", coverage, f"{percent(coverage)}.", headline=True),
         Finding("conformal", "size", Estimate(1.34, 1.29, 1.41), "A set holds 1.34 classes on average.", unit="classes",
                 direction="lower is better")),
        (Bars("Coverage of every class", "coverage", names, tuple(Estimate(0.85 + 0.01 * k, 0.8, 0.97) for k in range(10)),
              "The dashed line was promised.", 0.9, (0.0, 1.0)),),
        method="Split conformal with adaptive sets.", examined=600, available=600,
    )  # fmt: skip


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory) -> str:
    """A complete run with ordinary names."""
    return build_run(tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory) -> str:
    """A partial run whose every name wants to break out of the page."""
    return build_run(tmp_path_factory.mktemp("runs") / "hostile", names=HOSTILE, status="partial")


@pytest.fixture(scope="session")
def build():
    """`build_run` for tests that need runs of their own."""
    return build_run
