"""From intervals to words: does the model hold, waver or fall under each perturbation?

The rules are few, fixed beforehand, and printed in every report.  Each compares the whole interval of a probe's
headline number with two lines:

    Holds      the whole interval is on the good side of the first line
    Falls      the whole interval is on the bad side of the second line
    Undecided  the interval reaches across both lines: too few examples to say
    Wavers     anything else

The lines are shares of the accuracy on clean data (`RETAINED`) or fixed levels (`LEVELS`).  A verdict better than
Falls that a doubt touches is shown as "In doubt": an attack that is too weak can only flatter a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from holdfast.core.estimate import Estimate
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.core.sequences import anytime_mean
from holdfast.report.numbers import estimate_text
from holdfast.report.record import RunRecord

Word = Literal["Holds", "Wavers", "Falls", "Undecided", "Not proven", "In doubt", "Measured", "Not examined"]

#: Shares of the clean accuracy that must remain: at least the first to hold, less than the second to fall.
RETAINED = (0.9, 0.5)
#: A number on a line is on the line, whatever rounding did to either.
SLACK = 1e-9
#: Probes whose headline is an accuracy under perturbation.
AGAINST_CLEAN = ("adversarial", "certified", "corruption", "weights")
#: Of these, the ones that only prove: what they do not prove may still hold.
PROOFS = ("certified",)


@dataclass(frozen=True)
class Lines:
    """Fixed levels for a probe's headline; `higher` says which side is good."""

    holds: float
    falls: float
    higher: bool
    meaning: str


LEVELS = {
    "calibration": Lines(0.05, 0.15, False, "average gap between confidence and accuracy"),
    "labels": Lines(0.02, 0.10, False, "share of test labels that are probably wrong"),
    "leakage": Lines(0.01, 0.05, False, "share of test examples that have a twin"),
    "detection": Lines(0.90, 0.70, True, "chance that a foreign input scores as stranger than a familiar one"),
    "conformal": Lines(0.87, 0.80, True, "share of prediction sets that contain the truth, 90% promised"),
    "disparity": Lines(0.10, 0.25, False, "gap between the best and the worst served group"),
}

#: Few words for the first screen: the topic, and what the headline number says of it.
TOPICS = {
    "accuracy": ("on data like the test set", "right on"),
    "calibration": ("its stated confidence", "off by"),
    "adversarial": ("inputs perturbed on purpose", "right on"),
    "certified": ("with a mathematical guarantee", "proven for"),
    "corruption": ("noise, blur and other wear", "right on"),
    "detection": ("noticing foreign inputs", "told apart in"),
    "labels": ("the answer key", "wrong for"),
    "leakage": ("test data free of copies", "copied for"),
    "weights": ("rounded or noisy weights", "right on"),
    "conformal": ("prediction sets", "hold the truth for"),
    "disparity": ("every class and group alike", "gap of"),
}


@dataclass(frozen=True)
class Verdict:
    """What the rules say about one probe; `finding` is the number that decided, `rule` the lines it was held
    against."""

    probe: str
    topic: str
    word: Word
    finding: Finding | None
    rule: str
    doubts: tuple[Doubt, ...] = ()
    says: str = ""

    @property
    def tone(self) -> str:
        """Name of the colour it is shown in."""
        tones = {"Holds": "good", "Wavers": "fair", "Falls": "bad", "Measured": "plain", "Not examined": "none"}
        return tones.get(self.word, "open")

    @property
    def remark(self) -> str:
        """Why the verdict is open, in a word or two; empty when it is not."""
        if self.word == "In doubt":
            return f"in doubt: {self.doubts[0].name}"
        if self.word == "Measured":
            return "not judged"
        return self.word.lower() if self.word in ("Undecided", "Not proven", "Not examined") else ""

    def __str__(self) -> str:
        if self.finding is None:
            return self.topic
        lead = f"{self.says} " if self.says else ""
        return f"{self.topic} ({lead}{estimate_text(self.finding.estimate, self.finding.unit)})"


def headline_of(section: Section) -> Finding | None:
    """The finding a section is judged by: the first marked `headline`, else the first."""
    marked = [finding for finding in section.findings if finding.headline]
    return next(iter([*marked, *section.findings]), None)


def judge(record: RunRecord) -> tuple[Verdict, ...]:
    """One verdict a section, in the order of the report."""
    clean = clean_accuracy(record)
    return tuple(_judge(record, section, clean) for section in record.sections)


def clean_accuracy(record: RunRecord) -> Finding | None:
    """The accuracy on unperturbed data: as the accuracy probe found it, else from the clean predictions all probes
    share."""
    section = next((section for section in record.sections if section.probe == "accuracy"), None)
    found = None if section is None else headline_of(section)
    if found is not None or not record.clean:
        return found
    right = record.clean["prediction"] == record.clean["label"]
    estimate = anytime_mean(right, level=record.level)
    return Finding(
        "accuracy", "accuracy", estimate, f"The model is right on {estimate_text(estimate)}.", column="correct"
    )


def clean_verdict(record: RunRecord) -> Verdict | None:
    """The first line of the report: how often the model is right without any perturbation."""
    clean = clean_accuracy(record)
    if clean is None:
        return None
    word, rule = _against_guessing(clean.estimate, int(record.subject["classes"]))
    topic, says = TOPICS["accuracy"]
    return Verdict("accuracy", topic, word, clean, rule, record.doubts_about(clean), says)


def _judge(record: RunRecord, section: Section, clean: Finding | None) -> Verdict:
    topic, says = TOPICS.get(section.probe, (section.probe, ""))
    finding = headline_of(section)
    if finding is None:
        return Verdict(section.probe, topic, "Not examined", None, section.answer)
    doubts = record.doubts_about(finding)
    word, rule = _apply(section.probe, finding, clean, int(record.subject["classes"]))
    if doubts and word in ("Holds", "Wavers", "Undecided"):
        word = "In doubt"
    return Verdict(section.probe, topic, word, finding, rule, doubts, says if word != "Measured" else "")


def _apply(probe: str, finding: Finding, clean: Finding | None, classes: int) -> tuple[Word, str]:
    if probe == "accuracy":
        return _against_guessing(finding.estimate, classes)
    if probe in AGAINST_CLEAN and finding.direction == "higher is better" and clean is not None:
        holds, falls = (share * clean.estimate.value for share in RETAINED)
        rule = (
            f"holds at or above {100 * holds:.1f}%, falls below {100 * falls:.1f}% "
            f"({100 * RETAINED[0]:.0f}% and {100 * RETAINED[1]:.0f}% of the clean accuracy)"
        )
        word = _between(finding.estimate, holds, falls, higher=True)
        return ("Not proven" if probe in PROOFS and word != "Holds" else word), rule
    lines = LEVELS.get(probe)
    if lines is not None and finding.direction == ("higher is better" if lines.higher else "lower is better"):
        sides = ("at or above", "below") if lines.higher else ("at or below", "above")
        levels = f"holds {sides[0]} {100 * lines.holds:.0f}%, falls {sides[1]} {100 * lines.falls:.0f}%"
        rule = f"{levels} ({lines.meaning})"
        return _between(finding.estimate, lines.holds, lines.falls, lines.higher), rule
    return "Measured", "no rule judges this number"


def _against_guessing(estimate: Estimate, classes: int) -> tuple[Word, str]:
    """Accuracy has no perturbation to be compared with; it only falls when it cannot be told from guessing."""
    chance = 1 / max(classes, 1)
    rule = f"falls when its interval reaches guessing among {classes} classes ({100 * chance:.1f}%)"
    return ("Falls" if estimate.low <= chance else "Measured"), rule


def _between(estimate: Estimate, holds: float, falls: float, higher: bool) -> Word:
    sign = 1.0 if higher else -1.0
    worst, best = sorted((sign * estimate.low, sign * estimate.high))
    holds, falls = sign * holds - SLACK, sign * falls - SLACK
    if worst >= holds:
        return "Holds"
    if best < falls:
        return "Falls"
    return "Undecided" if best >= holds and worst < falls else "Wavers"


@dataclass(frozen=True)
class Line:
    """One line of the first screen: a `lead`, its colour, and the verdicts it gathers."""

    lead: str
    tone: str
    verdicts: tuple[Verdict, ...]


_LEADS: tuple[tuple[str, str, tuple[Word, ...]], ...] = (
    ("It holds", "good", ("Holds",)),
    ("It wavers", "fair", ("Wavers",)),
    ("It falls", "bad", ("Falls",)),
    ("Nobody can say yet", "open", ("In doubt", "Undecided", "Not proven", "Measured", "Not examined")),
)


def first_screen(verdicts: tuple[Verdict, ...]) -> tuple[Line, ...]:
    """At most four lines that gather the verdicts (accuracy on clean data, the fifth line, is told apart)."""
    perturbed = [verdict for verdict in verdicts if verdict.probe != "accuracy"]
    gathered = ((lead, tone, tuple(v for v in perturbed if v.word in words)) for lead, tone, words in _LEADS)
    return tuple(Line(*line) for line in gathered if line[2])


def rules_in_words() -> tuple[str, ...]:
    """The rules, for the page on which they are used."""
    names = ", ".join(f"“{TOPICS[probe][0]}”" for probe in AGAINST_CLEAN)
    levels = "; ".join(
        f"“{TOPICS[probe][0]}”: {100 * lines.holds:.0f}% and {100 * lines.falls:.0f}% ({lines.meaning})"
        for probe, lines in LEVELS.items()
    )
    shares = f"{100 * RETAINED[0]:.0f}% and {100 * RETAINED[1]:.0f}%"
    return (
        "A verdict compares a whole interval, never a single number, with two lines. Holds: all of the interval is on "
        "the good side of the first line. Falls: all of it is on the bad side of the second. Undecided: it reaches "
        "across both. Wavers: anything else.",
        f"For {names} the lines are {shares} of the accuracy on clean data.",
        "A proof that was not found proves nothing: where the guarantee does not reach, the verdict is Not proven. "
        "To hold against an attack means that this attack failed, which is no proof either.",
        f"The other lines are fixed. {levels}.",
        "A verdict better than Falls that a doubt touches is shown as In doubt: a weak test can only flatter a model.",
    )
