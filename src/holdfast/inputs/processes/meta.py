"""A neural process as a regressor that learns from many small tasks and then predicts from a handful of points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.processes.martingale import MartingaleNeuralProcess
from holdfast.inputs.processes.neural import ConditionalNeuralProcess, fit_process
from holdfast.inputs.processes.predictive import FunctionPosterior
from holdfast.inputs.processes.tasks import Tasks, gathered

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class MetaRegressor(BaseEstimator):
    """Learn from tasks (xc, yc, xt, yt); predict targets of new tasks from their context.

    Not a scikit-learn regressor of one table, hence not under its checks: `fit` takes tasks, each four arrays
    (points, dim).

    Parameters
    ----------
    kind : {"martingale", "conditional"}
    hidden, pseudo, samples, attention : see `MartingaleNeuralProcess`
    steps, batch, step : training by Adam under a cosine schedule, `batch` tasks a step
    random_state : int

    Attributes
    ----------
    model_ : the trained process, in evaluation mode
    losses_ : list of float, one a step
    """

    def __init__(
        self,
        kind: Any = "martingale",
        hidden: Any = 64,
        pseudo: Any = 20,
        samples: Any = 5,
        attention: Any = False,
        steps: Any = 1000,
        batch: Any = 16,
        step: Any = 5e-4,
        random_state: Any = 0,
    ):
        self.kind = kind
        self.hidden = hidden
        self.pseudo = pseudo
        self.samples = samples
        self.attention = attention
        self.steps = steps
        self.batch = batch
        self.step = step
        self.random_state = random_state

    def fit(self, tasks: Sequence[Arrays], y: None = None) -> MetaRegressor:
        """Train on the tasks.  Raises InputError for a setting or a task that does not fit (see `gathered`)."""
        if self.kind not in ("martingale", "conditional"):
            raise InputError(f"kind must be 'martingale' or 'conditional', got {self.kind!r}")
        known = gathered(tasks)
        generator = torch_generator(int(self.random_state), "meta regressor")
        dims = known.xc.shape[2], known.yc.shape[2]
        if self.kind == "martingale":
            self.model_: Any = MartingaleNeuralProcess(
                *dims, self.hidden, self.pseudo, self.samples, self.attention, generator=generator
            )
        else:
            self.model_ = ConditionalNeuralProcess(*dims, self.hidden, attention=self.attention, generator=generator)

        def batches(index: int) -> Tasks:
            return known.part(torch.randint(len(known), (self.batch,), generator=generator))

        self.losses_ = fit_process(self.model_, batches, self.steps, generator, step=self.step)
        return self

    @torch.no_grad()
    def posterior(self, xc: Any, yc: Any, xt: Any, samples: int = 50) -> FunctionPosterior:
        """Functions at xt (points, x_dim) given one context; the same call gives the same functions."""
        check_is_fitted(self)
        parts = [torch.as_tensor(np.asarray(part), dtype=torch.float32)[None] for part in (xc, yc, xt)]
        generator = torch_generator(int(self.random_state), "meta regressor", "posterior")
        return self.model_.predict(*parts, samples, generator=generator)

    def predict(self, xc: Any, yc: Any, xt: Any) -> Float[np.ndarray, "target y_dim"]:
        """Mean prediction at xt."""
        return self.posterior(xc, yc, xt).mean[0].numpy()
