"""What a cascade gains for what it costs, over all half-widths: every member is run once, and cascades are replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Series
from holdfast.inputs.cascades.members import Known, Lazy
from holdfast.inputs.cascades.window import WindowCascade

HALF_WIDTHS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class CostCurve:
    """Mean cost an input and quality at the operating point, one of each a half-width."""

    half_widths: Float[np.ndarray, " widths"]
    costs: Float[np.ndarray, " widths"]
    qualities: tuple[Estimate, ...]

    def series(self, name: str) -> Series:
        """The curve as a line of an exhibit, quality over cost with its band."""
        return Series(
            name,
            tuple(self.costs.tolist()),
            tuple(quality.value for quality in self.qualities),
            tuple(quality.low for quality in self.qualities),
            tuple(quality.high for quality in self.qualities),
        )


def cost_curve(
    cascade: WindowCascade,
    validation: tuple[Any, Any],
    test: tuple[Any, Any],
    half_widths: Sequence[float] = HALF_WIDTHS,
    foreign: Any = None,
) -> CostCurve:
    """Quality of the cascade's task on test data against mean cost, for half-widths from one member to all.

    `validation` and `test` are (inputs, labels); labels may be None where the task needs none.  `foreign` inputs are
    needed by the task TPR and enter no cost.  `cascade` itself is left as it is.  Raises InputError as
    `WindowCascade.fit` does, and when test labels are missing where the task needs them.
    """
    members = len(cascade.members)
    known = Known.of(Lazy(cascade.members, validation[0], cascade.score), members)
    tested = Known.of(Lazy(cascade.members, test[0], cascade.score), members)
    own = len(tested)
    if foreign is not None:
        tested = tested.followed_by(Known.of(Lazy(cascade.members, foreign, cascade.score), members))
    if cascade.task.needs_labels and test[1] is None:
        raise InputError(f"{cascade.task} is about errors, so the test data need labels")
    costs, qualities = [], []
    for half_width in half_widths:
        replay = _with_half_width(cascade, float(half_width)).calibrate(known, validation[1])
        result = replay.cascaded(tested)
        losses = np.zeros(own)
        if test[1] is not None:
            predicted = replay.classes_[result.probabilities[:own].argmax(axis=1)]
            losses = (predicted != np.asarray(test[1])).astype(np.float64)
        far = None if foreign is None else result.scores[own:]
        costs.append(replay.cost_of(result.stages[:own]))
        qualities.append(cascade.task.quality(result.scores[:own], losses, far))
    return CostCurve(np.asarray(half_widths, dtype=np.float64), np.asarray(costs), tuple(qualities))


def _with_half_width(cascade: WindowCascade, half_width: float) -> WindowCascade:
    settings = cascade.get_params(deep=False)
    return WindowCascade(**{**settings, "half_width": half_width})
