"""Error of a classifier under each family of corruption and severity, and the two means that are published.

With E_{c,s} the error under family c at severity s and E the error on the images as they are, over 15 x 5 cells

    mean error        mean over c, s of E_{c,s}                     (what remains of mCE without a reference)
    mCE               mean over c of  sum_s E_{c,s} / sum_s E'_{c,s}
    relative mCE      mean over c of  sum_s (E_{c,s} - E) / sum_s (E'_{c,s} - E')

where E' are the errors of a reference model on the same images (Hendrycks and Dietterich, 2019, take AlexNet and give
both in percent).  All intervals resample images, the unit of independence: the cells share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import bootstrap, weighted_clopper_pearson
from holdfast.core.seeds import numpy_generator
from holdfast.inputs.corruption.layout import Layout

#: Maps images as they are given to labels (n,).
Classifier = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class CorruptionErrors:
    """Whether each image is answered wrongly: as it is, and in every cell of the grid.

    Raises InputError when the numbers of images, families or severities do not fit, or there is none.
    """

    families: tuple[str, ...]
    severities: tuple[int, ...]
    clean_wrong: Bool[np.ndarray, " n"]
    wrong: Bool[np.ndarray, "_ families severities"]
    level: float = 0.95

    def __post_init__(self) -> None:
        wanted = (len(self.clean_wrong), len(self.families), len(self.severities))
        if self.wrong.shape != wanted or not self.wrong.size:
            raise InputError(f"errors must have shape (images, families, severities) {wanted}, got {self.wrong.shape}")

    @property
    def clean(self) -> Estimate:
        """Error on the images as they are."""
        return self._share(self.clean_wrong.astype(np.float64))

    @property
    def cells(self) -> Float[np.ndarray, "families severities"]:
        """Error in every cell."""
        return self.wrong.mean(axis=0)

    @property
    def by_family(self) -> dict[str, Estimate]:
        """Error of every family, mean over severities."""
        return {name: self._share(self.wrong[:, f].mean(axis=1)) for f, name in enumerate(self.families)}

    @property
    def by_severity(self) -> dict[int, Estimate]:
        """Error at every severity, mean over families."""
        return {severity: self._share(self.wrong[:, :, s].mean(axis=1)) for s, severity in enumerate(self.severities)}

    @property
    def mean(self) -> Estimate:
        """Error, mean over all cells."""
        return self._share(self.wrong.mean(axis=(1, 2)))

    def mce(self, reference: CorruptionErrors, *, generator: np.random.Generator, resamples: int = 1000) -> Estimate:
        """Mean corruption error against a reference on the same images; 1 is as good as the reference.

        Raises InputError when the images or cells differ, or the reference makes no error under some family.
        """
        return self._ratio(reference, False, generator, resamples)

    def relative_mce(
        self, reference: CorruptionErrors, *, generator: np.random.Generator, resamples: int = 1000
    ) -> Estimate:
        """The same of what corruption adds to the error on the images as they are.

        Raises InputError when the images or cells differ, or some family does not add to the error of the reference.
        """
        return self._ratio(reference, True, generator, resamples)

    def _ratio(
        self, reference: CorruptionErrors, relative: bool, generator: np.random.Generator, resamples: int
    ) -> Estimate:
        if (self.families, self.severities) != (reference.families, reference.severities):
            raise InputError("the reference was measured under other families or severities; use the same for both")
        if len(self.clean_wrong) != len(reference.clean_wrong):
            raise InputError(
                f"the reference saw {len(reference.clean_wrong)} images, the model {len(self.clean_wrong)}; they must "
                "be the same ones in the same order"
            )
        ours, theirs = (self._added(errors, relative) for errors in (self, reference))
        if not (theirs.mean(axis=0) > 0).all():
            none = self.families[int(theirs.mean(axis=0).argmin())]
            what = "adds nothing to" if relative else "causes none of"
            raise InputError(f"{none} {what} the reference's errors, so there is no ratio; take a weaker reference")
        return bootstrap(
            _mean_ratio, ours, theirs, generator=generator, level=self.level, resamples=resamples, vectorized=True
        )

    @staticmethod
    def _added(errors: CorruptionErrors, relative: bool) -> Float[np.ndarray, "n families"]:
        of_family = errors.wrong.mean(axis=2)
        return of_family - errors.clean_wrong[:, None] if relative else of_family

    def _share(self, values: Float[np.ndarray, " n"]) -> Estimate:
        return weighted_clopper_pearson(values, np.full(len(values), 1 / len(values)), self.level)


def _mean_ratio(
    ours: Float[np.ndarray, "resamples n families"], theirs: Float[np.ndarray, "resamples n families"]
) -> Float[np.ndarray, " resamples"]:
    # a resample in which a family adds nothing counts as if it added half an error
    floor = 0.5 / ours.shape[1]
    return (ours.mean(axis=1) / np.maximum(theirs.mean(axis=1), floor)).mean(axis=1)


def corruption_errors(
    classify: Classifier,
    x: Shaped[np.ndarray, "n ..."],
    y: Int[np.ndarray, " n"],
    *,
    seed: int = 0,
    families: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    layout: Layout = "channels_last",
    level: float = 0.95,
) -> CorruptionErrors:
    """Errors of `classify` on x as it is and under every family (None: all) and severity.

    Every image has its own stream in every cell, which follows `seed` and its place alone, so that models are compared
    on the same corrupted images.  Raises InputError for what `corrupt` refuses, and answers that are not one an image.
    """
    from holdfast.inputs.corruption import FAMILIES, corrupt

    names = tuple(FAMILIES if families is None else families)
    if not len(x) or len(x) != len(y):
        raise InputError(f"one label an image and at least one image are needed, got {len(x)} images, {len(y)} labels")
    wrong = np.empty((len(x), len(names), len(severities)), dtype=np.bool_)
    for f, name in enumerate(names):
        for s, severity in enumerate(severities):
            generator = numpy_generator(seed, "corruption errors", name, int(severity))
            wrong[:, f, s] = _wrong(classify, corrupt(x, name, severity, generator=generator, layout=layout), y)
    return CorruptionErrors(names, tuple(int(s) for s in severities), _wrong(classify, x, y), wrong, level)


def _wrong(classify: Classifier, x: np.ndarray, y: np.ndarray) -> Bool[np.ndarray, " n"]:
    answers = np.asarray(classify(x))
    if answers.shape != y.shape:
        raise InputError(f"a classifier gives one label an image, {y.shape}; got shape {answers.shape}")
    return np.asarray(answers != y)
