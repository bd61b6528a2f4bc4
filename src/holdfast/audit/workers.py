"""Where shards are examined: this process, local workers, or a cluster the user already has (joblib's backend seam)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

from holdfast.core.errors import InputError, MissingDependency

Engine = Literal["serial", "threading", "loky", "ray", "dask", "spark"]
T = TypeVar("T")

#: Runs calls and yields their results in the order of the calls.
Runner = Callable[[Sequence[Callable[[], T]]], Sequence[T]]


@contextmanager
def runner(engine: Engine, workers: int) -> Iterator[Runner[Any]]:
    """A function that runs calls on `engine`.  Raises InputError or MissingDependency when the engine cannot be had."""
    if engine not in get_args(Engine):
        raise InputError(f"unknown engine {engine!r}; choose from {', '.join(get_args(Engine))}")
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    if engine == "serial":
        yield lambda calls: [call() for call in calls]
        return
    from joblib import Parallel, delayed, parallel_config

    _register(engine)
    with parallel_config(backend=engine, n_jobs=workers, inner_max_num_threads=1 if engine == "loky" else None):
        pool = Parallel()
        yield lambda calls: list(pool(delayed(_call)(call) for call in calls))


def _call(call: Callable[[], T]) -> T:
    return call()


def _register(engine: Engine) -> None:
    purpose = f"--engine {engine}"
    try:
        if engine == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        elif engine == "dask":
            import dask.distributed  # noqa: F401 - importing registers the backend
        elif engine == "spark":
            from joblibspark import register_spark

            register_spark()
    except ImportError as error:
        raise MissingDependency.of(engine if engine != "spark" else "joblibspark", engine, purpose) from error
