"""Where shards are examined: this process, local workers, or a cluster the user already has (joblib's backend seam)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar, cast, get_args

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

    threads = 1 if engine == "loky" else None
    with _connection(engine), parallel_config(backend=engine, n_jobs=workers, inner_max_num_threads=threads):
        pool = Parallel()
        yield lambda calls: list(pool(delayed(_call)(call) for call in calls))


def _call(call: Callable[[], T]) -> T:
    return call()


def _connection(engine: Engine) -> AbstractContextManager[Any]:
    """What keeps `engine` known to joblib, on the cluster its own environment names (DASK_SCHEDULER_ADDRESS,
    RAY_ADDRESS) or, where none is named, on one started on this machine for the time of the audit."""
    try:
        if engine == "dask":
            from dask.distributed import Client

            return cast(AbstractContextManager[Any], Client())
        if engine == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        elif engine == "spark":
            from joblibspark import register_spark

            register_spark()
    except ImportError as error:
        package = {"dask": "dask[distributed]", "spark": "joblibspark"}.get(engine, str(engine))
        raise MissingDependency.of(package, str(engine), f"--engine {engine}") from error
    return nullcontext()
