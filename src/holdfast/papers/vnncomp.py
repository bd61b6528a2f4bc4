"""Instances of the verification competition with the verdicts that its tools reached.

Each instance asks of one network: does an input inside some boxes exist whose output lies in an unsafe set?  `verdict`
is "unsat" (no), "sat" (yes) or "unknown"; `tools_unsat` and `tools_sat` count the tools that said so.  The data folder
`vnncomp` holds seven families; its README says how verdicts were set.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.bounds.vnnlib import Disjunct, Property
from holdfast.papers.datasets import data_path
from holdfast.subject.onnx_graph import load_onnx

FAMILIES = ("acasxu", "rl", "mnist_fc", "verivital", "eran", "oval21", "cifar10_resnet")


@dataclass(frozen=True)
class Instance:
    """One question about one network, with what the competition says of it."""

    family: str
    network: str
    specification: str
    verdict: str
    tools_sat: int
    tools_unsat: int
    best_time_s: float
    timeout_s: float
    asked: Property

    @property
    def name(self) -> str:
        return f"{self.family}/{self.network}/{self.specification}"

    @property
    def agreed(self) -> bool:
        """Whether two or more tools reached the verdict."""
        return self.verdict in ("sat", "unsat") and (self.tools_sat if self.verdict == "sat" else self.tools_unsat) >= 2

    def module(self) -> nn.Module:
        """The network as a torch module in evaluation mode."""
        return network(self.family, self.network)


def instances(families: Sequence[str] = FAMILIES) -> list[Instance]:
    """All instances of the families, in the order of their files.

    Raises InputError for a family that does not exist or a data folder that is not there.
    """
    unknown = [family for family in families if family not in FAMILIES]
    if unknown:
        raise InputError(f"unknown family {', '.join(unknown)}; choose from {', '.join(FAMILIES)}")
    return [
        instance
        for family in families
        for file in sorted(data_path(f"vnncomp/{family}").glob("specs_*.npz"))
        for instance in _read(family, file)
    ]


@lru_cache(maxsize=8)
def network(family: str, name: str) -> nn.Module:
    """One network of a family, by the name its instances give."""
    packed = data_path(f"vnncomp/{family}/nets/{name}.gz")
    with tempfile.NamedTemporaryFile(suffix=".onnx") as unpacked:
        unpacked.write(gzip.decompress(packed.read_bytes()))
        unpacked.flush()
        return load_onnx(unpacked.name).eval()


def _read(family: str, file: Path) -> list[Instance]:
    with np.load(file, allow_pickle=False) as archive:
        stored = {name: archive[name] for name in archive.files}
    return [
        Instance(
            family,
            str(stored["net"][place]),
            str(stored["spec"][place]),
            str(stored["verdict"][place]),
            int(stored["tools_sat"][place]),
            int(stored["tools_unsat"][place]),
            float(stored["best_time_s"][place]),
            float(stored["timeout_s"][place]),
            _property(stored, place),
        )
        for place in range(len(stored["net"]))
    ]


def _property(stored: dict[str, np.ndarray], place: int) -> Property:
    disjuncts = []
    for position in np.flatnonzero(stored["disj_instance"] == place):
        box, rows = stored["disj_box"][position], stored["row_disj"] == position
        lower, upper = stored["box_lower"][box], stored["box_upper"][box]
        disjuncts.append(Disjunct(lower, upper, stored["row_A"][rows], stored["row_b"][rows]))
    return Property(tuple(disjuncts), name=str(stored["spec"][place]))
