"""A subject and a probe small enough to know every answer; also runnable, so that tests can kill it.

python toy_audit.py OUT DELAY [--resume] audits the toy subject, sleeping DELAY seconds a shard.
"""

import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from holdfast.audit.probe import Needs
from holdfast.core.finding import Finding, Section
from holdfast.core.sequences import anytime_mean
from holdfast.subject.data import ArrayInputs, Data
from holdfast.subject.subject import Access, Subject

EXAMPLES = 240
NEEDS = Needs()


def toy_subject(examples=EXAMPLES, shift=0.0):
    """Two classes on a line; the model is right except where x lies between 0 and 0.2."""
    x = np.linspace(-1, 1, examples, dtype=np.float32)[:, None]
    labels = (x[:, 0] > 0.2).astype(np.int64)
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.bias.copy_(torch.as_tensor(shift, dtype=torch.float32).expand(2))
    return Subject(
        model=model.eval(),
        test=Data(ArrayInputs(x), labels, source="toy"),
        class_names=("left", "right"),
        access=Access.GRADIENTS,
        modality="tabular",
        name="toy",
    )


@dataclass(frozen=True)
class ToyProbe:
    """Right, and right after a random move that only the shard's own generator decides."""

    name: str = "toy"
    question: str = "Is it right after a random move?"
    perturbs: str = "inputs"
    needs: Needs = NEEDS
    shard_size: int = 16
    delay: float = 0.0
    prepared: ClassVar[int] = 0

    def prepare(self, subject, settings):
        return "state"

    def examine(self, subject, state, batch):
        assert state == "state"
        time.sleep(self.delay)
        moved = batch.x + 0.3 * torch.randn(batch.x.shape, generator=batch.generator)
        held = (subject.logits(moved).argmax(1) == batch.y).numpy()
        return {"held": held, "move": (moved - batch.x).numpy()}

    def headline(self, state, evidence, settings):
        return anytime_mean(evidence["held"], level=settings.level)

    def conclude(self, subject, state, evidence, settings):
        estimate = self.headline(state, evidence, settings)
        finding = Finding(self.name, "accuracy", estimate, f"Right for {estimate}.", headline=True)
        return Section(self.name, self.question, f"Right for {estimate}.", (finding,))


@dataclass(frozen=True)
class BrokenProbe(ToyProbe):
    name: str = "broken"

    def examine(self, subject, state, batch):
        raise RuntimeError("a wheel came off")


if __name__ == "__main__":
    from holdfast.audit.engine import audit
    from holdfast.audit.probe import Settings

    audit(
        toy_subject(),
        out=sys.argv[1],
        probes=[ToyProbe(delay=float(sys.argv[2])), ToyProbe(name="toy_two", shard_size=7, delay=float(sys.argv[2]))],
        settings=Settings(seed=5),
        resume="--resume" in sys.argv,
    )
    print("finished", flush=True)
