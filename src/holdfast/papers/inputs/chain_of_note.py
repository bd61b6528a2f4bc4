"""Check of `chain-of-note`: two small transformers read documents of a closed world, one of them with notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import clopper_pearson, paired_difference
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.text.bm25 import BM25Retriever
from holdfast.inputs.text.noise_curve import NoiseCurve, Question, noise_curve
from holdfast.inputs.text.notes import NoteLoss
from holdfast.papers.bench_models.networks import initialise
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="chain-of-note",
    group="inputs",
    title="Reading notes for retrieval-augmented models",
    builds=(
        "holdfast.inputs.text.notes.NotePrompt",
        "holdfast.inputs.text.notes.NoteLoss",
        "holdfast.inputs.text.notes.NotedReader",
        "holdfast.inputs.text.noise_curve.noise_curve",
        "holdfast.inputs.text.answers.exact_match",
    ),
    claim=(
        "A reader trained to write a note on every retrieved document before it answers declines questions outside its "
        "knowledge more often when all documents are noise, and loses nothing on what it knows, compared with the same "
        "model trained to answer at once."
    ),
)

SEEDS = (0, 1, 2)
SUBJECTS, RELATIONS, VALUES, K, WIDTH = 60, 8, 30, 5, 64
STEPS, BATCH, GOLD_SHARE, PEAK = 450, 96, 0.6, 4e-3
#: Token numbers: subjects, relations, values, then "unknown" and the note "irrelevant".
FIRST_RELATION, FIRST_VALUE = SUBJECTS, SUBJECTS + RELATIONS
UNKNOWN = FIRST_VALUE + VALUES
IRRELEVANT, TOKENS = UNKNOWN + 1, UNKNOWN + 2
PARTS = ("known", "unknown", "never asked")
NOISY, WITH_GOLD = 1.0, 1 - 1 / K


def check(scale: Scale) -> Outcome:
    """Noise curves of both readers over known facts, unknown ones, and unknown ones that no training question asked."""
    full = scale is Scale.FULL
    seeds = SEEDS if full else SEEDS[:1]
    worlds = [World(seed) for seed in seeds]
    valid = _validity(worlds)
    if not full:
        return Outcome((valid,), seeds=seeds)
    curves = {
        way: [_curves(train_reader(world, notes).answer, world) for world in worlds]
        for way, notes in (("direct", False), ("notes", True))
    }
    gate = _gate(curves)
    rejection = _difference(curves, "unknown", "rejected")
    kept = _difference(curves, "known", "exact")
    fresh = _difference(curves, "never asked", "rejected")
    criteria = (
        valid,
        gate,
        Criterion(
            "with noise alone, notes reject questions about unknown facts more often (paired interval above 0)",
            rejection.low > 0,
            {"notes - direct": rejection, **_shares(curves, "unknown", "rejected", NOISY)},
        ),
        Criterion(
            "with noise alone, notes answer no fewer of the known facts (the paired interval reaches 0)",
            kept.high >= 0,
            {"notes - direct": kept, **_shares(curves, "known", "exact", NOISY)},
        ),
    )
    ours, baseline = (_pooled(curves[way], "unknown", "rejected", NOISY) for way in ("notes", "direct"))
    notes = (
        f"{SUBJECTS} subjects x {RELATIONS} relations, half known; {STEPS} steps of {BATCH} questions for either "
        "reader.  A document is one token (the sum of its three words) and the head of every note repeats the "
        "question; queries and keys start equal, so that like attends to like, without which copying from documents is "
        "not learnt in this time.  Unknown facts are of two kinds, those that training asked about and those it did "
        f"not: rejection of the latter, notes - direct: {fresh}."
    )
    return Outcome(criteria, ours, baseline, (_table(curves),), seeds, notes)


@dataclass(frozen=True)
class Batch:
    """Questions (subject, relation), documents (subject, relation, value), the note on each, and the answer."""

    questions: Int[Tensor, "batch 2"]
    documents: Int[Tensor, "batch documents 3"]
    notes: Int[Tensor, "batch documents"]
    answers: Int[Tensor, " batch"]


class World:
    """Facts (subject, relation) -> value; half are known, a quarter unknown, a quarter unknown and never asked."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        generator = torch_generator(seed, PAPER.key, "world")
        self.truth = torch.randint(VALUES, (SUBJECTS, RELATIONS), generator=generator)
        rank = (
            torch.randperm(SUBJECTS * RELATIONS, generator=generator).reshape(SUBJECTS, RELATIONS) / self.truth.numel()
        )
        self.known = rank < 0.5
        self.parts = {"known": self.known, "unknown": (rank >= 0.5) & (rank < 0.75), "never asked": rank >= 0.75}

    def batch(self, generator: torch.Generator) -> Batch:
        """Training questions; documents share the subject or the relation, and some batches hold the fact asked for.

        The values of unknown facts are drawn anew in every document, so nothing can be learnt about them.
        """
        asked = (~self.parts["never asked"]).nonzero()
        question = asked[torch.randint(len(asked), (BATCH,), generator=generator)]
        s, r = question[:, :1], question[:, 1:]
        same = torch.rand(BATCH, K, generator=generator) < 0.5
        subject = torch.where(same, s, (s + torch.randint(1, SUBJECTS, (BATCH, K), generator=generator)) % SUBJECTS)
        relation = torch.where(same, (r + torch.randint(1, RELATIONS, (BATCH, K), generator=generator)) % RELATIONS, r)
        gold = torch.arange(K) == torch.randint(K, (BATCH, 1), generator=generator)
        gold &= torch.rand(BATCH, 1, generator=generator) < GOLD_SHARE
        subject, relation = torch.where(gold, s, subject), torch.where(gold, r, relation)
        fresh = torch.randint(VALUES, (BATCH, K), generator=generator)
        value = FIRST_VALUE + torch.where(self.known[subject, relation], self.truth[subject, relation], fresh)
        remembered = torch.where(self.known[s, r], FIRST_VALUE + self.truth[s, r], UNKNOWN)[:, 0]
        answer = torch.where(gold.any(1), (value * gold).sum(1), remembered)
        documents = torch.stack([subject, FIRST_RELATION + relation, value], dim=-1)
        tokens = torch.cat([s, FIRST_RELATION + r], dim=1)
        return Batch(tokens, documents, torch.where(gold, value, IRRELEVANT), answer)

    def examination(self) -> tuple[BM25Retriever, dict[str, list[Question]]]:
        """A corpus with one document a fact, unknown values drawn anew, and the questions of every part."""
        fresh = torch.randint(VALUES, self.truth.shape, generator=torch_generator(self.seed, PAPER.key, "corpus"))
        values = torch.where(self.known, self.truth, fresh).tolist()
        corpus = [f"s{i} r{j} v{values[i][j]}" for i in range(SUBJECTS) for j in range(RELATIONS)]
        questions = {
            part: [Question(f"s{i} r{j}", (f"v{values[i][j]}",)) for i, j in mask.nonzero().tolist()]
            for part, mask in self.parts.items()
        }
        return BM25Retriever(corpus), questions


class Reader(nn.Module):
    """A causal transformer over [documents, question, notes]; called with texts it answers them.

    `notes` says whether it writes one note a document before the answer.
    """

    def __init__(self, notes: bool) -> None:
        super().__init__()
        self.notes = notes
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.place = nn.Parameter(torch.empty(2 * K + 1, WIDTH))
        self.index = nn.Parameter(torch.empty(K, WIDTH))  # the number that a document shares with its note
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm, self.read = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS)

    def start(self, generator: torch.Generator) -> Reader:
        """Set all parameters; queries start equal to keys."""
        initialise(self, generator)
        for table in (self.embed.weight, self.index):
            nn.init.normal_(table.data, std=0.3, generator=generator)
        for name, parameter in self.named_parameters():
            if name.endswith("in_proj_weight"):
                parameter.data[:WIDTH] = parameter.data[WIDTH : 2 * WIDTH]
        return self

    def forward(
        self,
        questions: Int[Tensor, "batch 2"],
        documents: Int[Tensor, "batch documents 3"],
        notes: Int[Tensor, "batch written"],
    ) -> Float[Tensor, "batch written+1 tokens"]:
        """Logits of the notes and the answer, each given what was written before."""
        asked = self.embed(questions).sum(1, keepdim=True)
        heads = self.embed(notes) + asked
        x = torch.cat([self.embed(documents).sum(2) + self.index, asked, heads], dim=1)
        x = x + self.place[: x.shape[1]]
        # Position K + i writes note i + 1, so it carries the number of that note; the last one writes the answer.
        numbers = torch.cat([self.index, torch.zeros(1, WIDTH)])[: notes.shape[1] + 1] if self.notes else 0
        x = torch.cat([x[:, :K], x[:, K:] + numbers], dim=1)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.read(self.norm(x[:, K:]))

    @torch.no_grad()
    def write(
        self, questions: Int[Tensor, "batch 2"], documents: Int[Tensor, "batch documents 3"]
    ) -> Int[Tensor, " batch"]:
        """The likeliest answer, after the likeliest notes one by one."""
        written = torch.empty(len(questions), 0, dtype=torch.int64)
        for _ in range(K if self.notes else 0):
            written = torch.cat([written, self(questions, documents, written)[:, -1:].argmax(-1)], dim=1)
        return self(questions, documents, written)[:, -1].argmax(-1)

    def answer(self, questions: Sequence[str], documents: Sequence[Sequence[str]]) -> list[str]:
        """Answers to texts "s12 r3" from documents "s12 r3 v7"."""
        if not questions:
            return []
        asked = torch.tensor([_tokens(question) for question in questions])
        shown = torch.tensor([[_tokens(document) for document in some] for some in documents])
        names = [f"v{number - FIRST_VALUE}" if number < UNKNOWN else "unknown" for number in range(TOKENS)]
        return [names[number] for number in self.eval().write(asked, shown).tolist()]


def _tokens(text: str) -> list[int]:
    first = {"s": 0, "r": FIRST_RELATION, "v": FIRST_VALUE}
    return [first[word[0]] + int(word[1:]) for word in text.split()]


def train_reader(world: World, notes: bool, steps: int = STEPS) -> Reader:
    """A reader trained on the world's questions; both kinds start alike and see the same batches."""
    reader = Reader(notes).start(torch_generator(world.seed, PAPER.key, "weights"))
    generator = torch_generator(world.seed, PAPER.key, "questions")
    loss = NoteLoss(0.5 if notes else 1.0, shift=False)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=PEAK, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        batch = world.batch(generator)
        written = batch.notes if notes else batch.notes[:, :0]
        labels = torch.cat([written, batch.answers[:, None]], dim=1)
        mask = torch.zeros_like(labels, dtype=torch.bool)
        mask[:, -1] = True
        optimizer.zero_grad()
        loss(reader(batch.questions, batch.documents, written), labels, mask).backward()
        optimizer.step()
        schedule.step()
    return reader.eval()


Answering = Callable[[Sequence[str], Sequence[Sequence[str]]], list[str]]


def _curves(answering: Answering, world: World) -> dict[str, NoiseCurve]:
    """With one gold document, and with noise alone, for every part of the facts."""
    retriever, questions = world.examination()
    return {
        part: noise_curve(
            answering, questions[part], retriever, (WITH_GOLD, NOISY), numpy_generator(world.seed, PAPER.key, part), k=K
        )
        for part in PARTS
    }


def _validity(worlds: Sequence[World]) -> Criterion:
    """The world can be read: looking the question up in the documents answers all of it, and noise none of it."""

    def look_up(questions: Sequence[str], documents: Sequence[Sequence[str]]) -> list[str]:
        found = [
            next((document.split()[2] for document in some if document.startswith(f"{question} ")), "unknown")
            for question, some in zip(questions, documents, strict=True)
        ]
        return found

    curves = [_curves(look_up, world) for world in worlds]
    gold = [curve[part].exact_match(WITH_GOLD).value for curve in curves for part in PARTS]
    noise = [curve[part].rejection(NOISY).value for curve in curves for part in PARTS]
    return Criterion(
        "a reader that looks the question up finds every answer among documents with a gold one, and none in noise",
        min(gold) == 1 and min(noise) == 1,
        {"least exact match": min(gold), "least rejection": min(noise)},
    )


Curves = dict[str, list[dict[str, NoiseCurve]]]


def _gate(curves: Curves) -> Criterion:
    """Whether both readers learnt to read; otherwise the comparison says nothing."""
    numbers: dict[str, Estimate | float | int] = {}
    for way, seeds in curves.items():
        for seed, parts in zip(SEEDS, seeds, strict=True):
            right = np.concatenate([parts[part].exact[0] for part in PARTS[:2]])
            numbers[f"{way}, seed {seed}"] = clopper_pearson(int(right.sum()), len(right))
    least = min(number.value for number in numbers.values() if isinstance(number, Estimate))
    return Criterion(
        "both readers answer at least 90% of the facts they were asked about in training from a gold document among "
        "noise, in every seed",
        least >= 0.9,
        numbers,
    )


def _difference(curves: Curves, part: str, what: str) -> Estimate:
    """Notes less direct with noise alone, over the questions of all seeds."""
    direct, notes = (_joined(curves[way], part, what, NOISY) for way in ("direct", "notes"))
    return paired_difference(direct, notes)


def _joined(
    seeds: Sequence[dict[str, NoiseCurve]], part: str, what: str, ratio: float
) -> Bool[np.ndarray, " questions"]:
    rows = [(curve := parts[part], curve.ratios.index(ratio)) for parts in seeds]
    return np.concatenate([getattr(curve, what)[row][curve.asked[row]] for curve, row in rows])


def _pooled(seeds: Sequence[dict[str, NoiseCurve]], part: str, what: str, ratio: float) -> Estimate:
    values = _joined(seeds, part, what, ratio)
    return clopper_pearson(int(values.sum()), len(values))


def _shares(curves: Curves, part: str, what: str, ratio: float) -> dict[str, Estimate]:
    return {way: _pooled(seeds, part, what, ratio) for way, seeds in curves.items()}


def _table(curves: Curves) -> Table:
    rows = tuple(
        (part, name, way, _pooled(seeds, part, "exact", ratio), _pooled(seeds, part, "rejected", ratio))
        for part in PARTS
        for name, ratio in (("one gold, four noise", WITH_GOLD), ("noise alone", NOISY))
        for way, seeds in curves.items()
    )
    return Table(
        "Answers from retrieved documents",
        ("facts", "documents", "reader", "exact match", '"unknown"'),
        rows,
        caption="Known facts can be answered without documents; for the others noise alone leaves only to decline.",
    )
