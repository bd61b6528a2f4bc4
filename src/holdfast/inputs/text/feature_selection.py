"""Columns chosen by what a language model knows about them (FailureSensorIQ's LLMFeatureSelector, 2025).

The model sees the name of the target and of every column, never a value, and answers with a JSON object whose
"features" lists columns by priority, or with the list alone; the first k that exist are kept, in their own order in the
table.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from holdfast.core.errors import InputError

TEMPLATE = """A model is to predict {target} from a table with these columns:
{columns}
Choose the columns that matter most{most}. Answer with JSON only, most important first:
{{"features": ["column", ...]}}"""


class Remembered:
    """A callable str -> str that is asked every prompt once.  Copies share the memory, so clones of an estimator in a
    cross-validation get one answer."""

    def __init__(self, ask: Callable[[str], str]) -> None:
        self.ask = ask
        self.answers: dict[str, str] = {}

    def __call__(self, prompt: str) -> str:
        if prompt not in self.answers:
            self.answers[prompt] = self.ask(prompt)
        return self.answers[prompt]

    def __deepcopy__(self, memo: dict[int, Any]) -> Remembered:
        return self


class LanguageModelFeatureSelector(SelectorMixin, BaseEstimator):
    """Keep the columns that a language model names.

    Parameters
    ----------
    ask : callable str -> str
        The language model.  Wrap it in `Remembered` to ask it once for all clones.
    target : str
        What is predicted, in words.
    k : int or None
        How many columns to keep; None keeps every column that was named.
    template : str or None
        A prompt with {target}, {columns} and {most}; None takes TEMPLATE.
    columns : sequence of str or None
        Names of the columns of an X that carries none; None calls them x0, x1, ...
    malformed : "warn" or "raise"
        What to do with an answer that names no column in the wanted form: keep all columns and warn, or raise.

    Attributes
    ----------
    ranking_ : columns by priority, at most k
    ignored_ : names in the answer that are no column
    answer_ : the answer as it came
    support_ : (features,) bool
    n_features_in_, feature_names_in_ : as in scikit-learn
    """

    def __init__(
        self,
        ask: Any,
        target: Any = "the target",
        k: Any = None,
        template: Any = None,
        columns: Any = None,
        malformed: Any = "warn",
    ):
        self.ask = ask
        self.target = target
        self.k = k
        self.template = template
        self.columns = columns
        self.malformed = malformed

    def fit(self, X: Any, y: Any = None) -> LanguageModelFeatureSelector:
        """Ask for the columns; values and y are not used.

        Raises InputError when k is not positive, ask is no callable, names do not fit the columns, or
        (malformed="raise") the answer names no column.
        """
        if not callable(self.ask):
            raise InputError(f"ask must be a callable str -> str, got {type(self.ask).__name__}")
        if self.k is not None and self.k < 1:
            raise InputError(f"k, the number of columns to keep, must be at least 1 or None, got {self.k}")
        if self.malformed not in ("warn", "raise"):
            raise InputError(f'malformed must be "warn" or "raise", got {self.malformed!r}')
        validate_data(self, X, dtype=None, ensure_all_finite=False)
        columns = self._columns()
        self.answer_ = str(self.ask(self._prompt(columns)))
        named = list(dict.fromkeys(_listed(self.answer_)))
        self.ignored_ = tuple(name for name in named if name not in columns)
        self.ranking_ = tuple(name for name in named if name in columns)[: self.k]
        if not self.ranking_:
            self._malformed()
        elif self.ignored_:
            warnings.warn(f"the language model named columns that do not exist: {self.ignored_}", stacklevel=2)
        kept = self.ranking_ or columns
        self.support_ = np.array([name in kept for name in columns])
        return self

    def _columns(self) -> list[str]:
        unnamed = [f"x{place}" for place in range(self.n_features_in_)] if self.columns is None else self.columns
        columns = [str(name) for name in getattr(self, "feature_names_in_", unnamed)]
        if len(columns) != self.n_features_in_ or len(set(columns)) < len(columns):
            raise InputError(f"X has {self.n_features_in_} columns, which need as many different names, got {columns}")
        return columns

    def _prompt(self, columns: list[str]) -> str:
        most = "" if self.k is None else f", at most {self.k}"
        listing = "\n".join(f"- {name}" for name in columns)
        return (self.template or TEMPLATE).format(target=self.target, columns=listing, most=most)

    def _malformed(self) -> None:
        said = f'no column in a list "features", or in a list alone, in the answer {self.answer_[:80]!r}'
        if self.malformed == "raise":
            raise InputError(f'{said}; mend the template, or pass malformed="warn" to keep all columns')
        warnings.warn(f"{said}; all columns are kept", stacklevel=3)

    def _get_support_mask(self) -> Bool[np.ndarray, " features"]:
        check_is_fitted(self)
        return self.support_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.string = True
        return tags


def _listed(answer: str) -> list[str]:
    """The strings under "features" in the first JSON object of the answer that has them, or else those of the first
    list of strings that is part of no object; empty when there is neither."""
    alone: list[str] = []
    covered = 0
    for start in (place for place, letter in enumerate(answer) if letter in "{["):
        try:
            value, end = json.JSONDecoder().raw_decode(answer, start)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict) and isinstance(value.get("features"), list):
            return _strings(value["features"])
        if isinstance(value, list) and start >= covered:
            alone = alone or _strings(value)
        covered = max(covered, end)
    return alone


def _strings(values: list[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str)]
