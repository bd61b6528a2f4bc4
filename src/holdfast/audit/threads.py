"""How many threads a model is best run with: small networks are slowed, often manyfold, by sharing their sums out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from holdfast.subject.subject import Access, Subject

BATCH = 64
REPEATS = 3
WORTHWHILE = 0.8  # all threads must take at most this share of one thread's time


def fastest_threads(subject: Subject) -> int:
    """1, or all threads torch would use, whichever runs a batch (forward, and backward if it can) faster.

    Takes under a second for a model that takes under 50 ms a batch.  Off the CPU torch's number is kept.
    """
    most = torch.get_num_threads()
    if most == 1 or subject.device.type != "cpu":
        return most
    inputs, labels = subject.test.take(np.arange(min(BATCH, len(subject.test))))
    x, y = subject.tensor(inputs), torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64))
    seconds = {}
    for threads in (most, 1):
        with use_threads(threads):
            _pass(subject, x, y)
            seconds[threads] = min(_pass(subject, x, y) for _ in range(REPEATS))
    return most if seconds[most] <= WORTHWHILE * seconds[1] else 1


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Run torch with `count` threads inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pass(subject: Subject, x: torch.Tensor, y: torch.Tensor) -> float:
    began = time.perf_counter()
    if subject.access is Access.GRADIENTS:
        x = x.clone().requires_grad_()
        logits = subject.model(x)
        torch.autograd.grad(logits.gather(1, y[:, None]).sum(), x, allow_unused=True)
    else:
        subject.logits(x)
    return time.perf_counter() - began
