"""scikit-learn estimators: objects in memory, skops files, and pickles when they are trusted.

The best the estimator offers is used: `predict_proba` (logits are its logarithms), else `decision_function`, else
`predict` alone.  Its `classes_` number the labels and `feature_names_in_` choose the columns of a table.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.core.errors import InputError, MissingDependency, TrustError
from holdfast.subject.fingerprint import file_digest
from holdfast.subject.models.loaded import ArrayModel, LoadedModel, Outputs
from holdfast.subject.subject import Access


def estimator_model(estimator: Any, name: str, digest: str | None = None) -> LoadedModel:
    """A fitted classifier as a model.  Raises InputError when it is not fitted or not a classifier."""
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        from sklearn.base import is_regressor

        what = "a regressor" if is_regressor(estimator) else "not fitted, or not a classifier (it has no classes_)"
        raise InputError(f"the estimator {type(estimator).__name__} is {what}; a fitted classifier was wanted")
    if isinstance(classes, list):
        raise InputError(f"the estimator {type(estimator).__name__} answers several questions at once; one was wanted")
    function, outputs = _best_answer(estimator, np.asarray(classes))
    features = getattr(estimator, "feature_names_in_", None)
    named = None if features is None else tuple(str(feature) for feature in features)
    levels: dict[str, list[str]] | None = None if named is None else {}
    rows = _flat_rows(estimator) if named is None or levels is None else _frames(named, levels)
    return LoadedModel(
        EstimatorModel(lambda x: function(rows(x)), digest or _digest(estimator), levels),
        name,
        Access.LABELS if outputs == "labels" else Access.SCORES,
        outputs,
        tuple(np.asarray(classes).tolist()),
        named,
        levels=levels,
    )


class EstimatorModel(ArrayModel):
    """An estimator as a module; its content is the estimator and the code book of its columns of words."""

    def __init__(self, function: Callable[[np.ndarray], Any], digest: str, levels: dict[str, list[str]] | None) -> None:
        super().__init__(function, digest)
        self.levels = levels

    def content_digest(self) -> str:
        return self.digest if not self.levels else f"{self.digest} {sorted(self.levels.items())!r}"


def _flat_rows(estimator: Any) -> Callable[[np.ndarray], Any]:
    """Examples of any shape as the rows that the estimator was fitted on."""
    wanted = getattr(estimator, "n_features_in_", None)
    return lambda x: x.reshape(len(x), -1) if wanted is not None and x.size == len(x) * wanted else x


def _frames(named: tuple[str, ...], levels: dict[str, list[str]]) -> Callable[[np.ndarray], Any]:
    """Rows as the data frame that the estimator was fitted on, codes turned back into words (the nearest one)."""
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingDependency(
            "the estimator was fitted on a data frame and needs one again: pip install pandas"
        ) from error

    def frame(x: np.ndarray) -> Any:
        if x.ndim != 2 or x.shape[1] != len(named):
            raise ValueError(f"rows of {len(named)} columns were wanted, {', '.join(named[:5])}, ...")
        columns = {name: x[:, k] for k, name in enumerate(named)}
        for name, book in levels.items():
            place = np.clip(np.rint(columns[name]), 0, len(book) - 1).astype(int)
            columns[name] = np.asarray(book, dtype=object)[place]
        return pd.DataFrame(columns)

    return frame


def _best_answer(estimator: Any, classes: np.ndarray) -> tuple[Callable[[Any], np.ndarray], Outputs]:
    if callable(getattr(estimator, "predict_proba", None)):
        return estimator.predict_proba, "probabilities"
    if callable(getattr(estimator, "decision_function", None)):
        return lambda rows: _two_columns(np.asarray(estimator.decision_function(rows)), len(classes)), "logits"
    return lambda rows: _places(np.asarray(estimator.predict(rows)), classes), "labels"


def _two_columns(scores: np.ndarray, classes: int) -> np.ndarray:
    """Scores one column a class; a binary decision d becomes (-d/2, d/2), whose difference is d."""
    if scores.ndim == 1:
        return np.stack([-scores / 2, scores / 2], axis=1)
    if scores.shape[1] != classes:
        raise InputError(
            f"the estimator's decision function gives {scores.shape[1]} columns for {classes} classes; one a class "
            "was wanted "
            "(decision_function_shape='ovr')"
        )
    return scores


def _places(answers: np.ndarray, classes: np.ndarray) -> np.ndarray:
    order = np.argsort(classes)
    return np.asarray(order[np.searchsorted(classes, answers, sorter=order)])


def _digest(estimator: Any) -> str:
    import joblib

    return str(joblib.hash(estimator)) or hashlib.blake2b(repr(estimator).encode()).hexdigest()


def estimator_file(path: Path, trust: bool) -> LoadedModel:
    """The estimator in a `.skops` file, or in a pickle when `trust` is True."""
    thing = _from_skops(path, trust) if path.suffix == ".skops" else _from_pickle(path, trust)
    if not hasattr(thing, "predict"):
        raise InputError(f"{path}: holds a {type(thing).__name__}; a fitted classifier was wanted")
    return estimator_model(thing, path.stem, file_digest(path))


def _from_skops(path: Path, trust: bool) -> Any:
    from skops import io as skops
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        unknown = skops.get_untrusted_types(file=path)
        if unknown and not trust:
            shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            raise TrustError(
                f"{path}: holds types that skops does not know to be safe ({shown}); say --trust if you trust "
                "where it came from"
            )
        return skops.load(path, trusted=unknown)
    except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
        raise InputError(f"{path}: not a whole .skops file ({error}); save or fetch it again") from error
    except (UntrustedTypesFoundException, ImportError, AttributeError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: skops cannot read it ({str(error).splitlines()[0]})") from error


def _from_pickle(path: Path, trust: bool) -> Any:
    if not trust:
        raise TrustError(
            f"{path}: a pickle can run code when it is read; save the estimator with skops, or say --trust if you "
            "trust where "
            "it came from"
        )
    import joblib

    try:
        return joblib.load(io.BytesIO(path.read_bytes()))
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        ValueError,
        IndexError,
        ImportError,
        AttributeError,
        OSError,
    ) as error:
        raise InputError(f"{path}: cannot be unpickled ({type(error).__name__}: {error})") from error
