"""What a probe concludes: findings, doubts, and the section of the report they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Exhibit, exhibit_from_dict

Direction = Literal["higher is better", "lower is better", "neither"]


@dataclass(frozen=True)
class Finding:
    """One number that answers one question.

    `probe` and `name` make its key (`adversarial.accuracy`), which `--fail-if`, `compare` and `assert_holds` use.
    `sentence` is plain English with the number in it; `remedies` are names `holdfast harden` knows.
    `column` names the column of the probe's evidence whose mean over examples is the estimate, so that `compare` can
    pair two runs example by example; a column with further dimensions stands for its mean over them, NaN for "does
    not apply here".
    """

    probe: str
    name: str
    estimate: Estimate
    sentence: str
    unit: str = "share"
    direction: Direction = "higher is better"
    remedies: tuple[str, ...] = ()
    headline: bool = False
    column: str | None = None

    @property
    def key(self) -> str:
        return f"{self.probe}.{self.name}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "probe": self.probe,
            "name": self.name,
            "estimate": self.estimate.to_dict(),
            "sentence": self.sentence,
            "unit": self.unit,
            "direction": self.direction,
            "remedies": list(self.remedies),
            "headline": self.headline,
            "column": self.column,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        return cls(
            probe=data["probe"],
            name=data["name"],
            estimate=Estimate.from_dict(data["estimate"]),
            sentence=data["sentence"],
            unit=data["unit"],
            direction=data["direction"],
            remedies=tuple(data["remedies"]),
            headline=bool(data["headline"]),
            column=data.get("column"),
        )


@dataclass(frozen=True)
class Doubt:
    """A reason not to believe a number as it stands: what was seen, which findings it touches, what to do."""

    name: str
    sentence: str
    touches: tuple[str, ...] = ()
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "sentence": self.sentence, "touches": list(self.touches), "advice": self.advice}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Doubt:
        return cls(data["name"], data["sentence"], tuple(data["touches"]), data["advice"])


@dataclass(frozen=True)
class Section:
    """Everything one probe has to say, in the order it should be read."""

    probe: str
    question: str
    answer: str
    findings: tuple[Finding, ...]
    exhibits: tuple[Exhibit, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    method: str = ""
    advice: str = ""
    status: Literal["complete", "partial", "skipped", "failed"] = "complete"
    examined: int = 0
    available: int = 0
    seconds: float = field(default=0.0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "probe": self.probe,
            "question": self.question,
            "answer": self.answer,
            "findings": [finding.to_dict() for finding in self.findings],
            "exhibits": [exhibit.to_dict() for exhibit in self.exhibits],
            "doubts": [doubt.to_dict() for doubt in self.doubts],
            "method": self.method,
            "advice": self.advice,
            "status": self.status,
            "examined": self.examined,
            "available": self.available,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Section:
        return cls(
            probe=data["probe"],
            question=data["question"],
            answer=data["answer"],
            findings=tuple(Finding.from_dict(part) for part in data["findings"]),
            exhibits=tuple(exhibit_from_dict(part) for part in data["exhibits"]),
            doubts=tuple(Doubt.from_dict(part) for part in data["doubts"]),
            method=data["method"],
            advice=data["advice"],
            status=data["status"],
            examined=data["examined"],
            available=data["available"],
            seconds=data["seconds"],
        )
