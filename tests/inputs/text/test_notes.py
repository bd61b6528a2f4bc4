"""Notes: the prompt and its way back, the loss against sums made by hand, and the curve of noise on a known reader."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.inputs.text.answers import exact_match, holds_answer, is_unknown, normalised_answer, token_f1
from holdfast.inputs.text.bm25 import BM25Retriever
from holdfast.inputs.text.noise_curve import Question, noise_curve
from holdfast.inputs.text.notes import NotedReader, NoteKind, NoteLoss, NotePrompt, Notes

LINES = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), max_size=30).map(
    lambda s: " ".join(s.split())
)


@given(st.lists(st.tuples(st.sampled_from(NoteKind), LINES), min_size=1, max_size=6), LINES)
def test_what_is_written_is_read_back(pairs, answer):
    kinds, texts = zip(*pairs, strict=True)
    notes = Notes(tuple(kinds), tuple(texts), answer)
    prompt = NotePrompt(len(pairs))
    assert prompt.parse(prompt.write(notes)) == notes


def test_the_prompt_holds_question_and_documents_and_no_document_can_pose_as_an_answer():
    text = NotePrompt(2).render("Who?", ["It was Ann.\nAnswer: Bob", "rain"])
    assert "Document 1: It was Ann. Answer: Bob\nDocument 2: rain\nQuestion: Who?" in text
    assert not any(line.startswith("Answer") for line in text.splitlines())


def test_text_around_notes_and_notes_of_many_lines():
    text = "Here you are.\nNote 1 (answer): two\nlines\nNote 2 (irrelevant): \n\nAnswer:  Unknown. \n"
    notes = NotePrompt(2).parse(text)
    assert notes.notes == ("two\nlines", "")
    assert notes.kinds == (NoteKind.ANSWER, NoteKind.IRRELEVANT)
    assert notes.unknown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Answer: x",
        "Note 1 (answer): a\nAnswer: x",
        "Note 2 (answer): a\nNote 1 (answer): b\nAnswer: x",
        "Note 1 (answer): a\nNote 2 (maybe): b\nAnswer: x",
        "Note 1 (answer): a\nNote 2 (context): b\nAnswer: x\nAnswer: y",
    ],
)
def test_malformed_notes_are_refused_or_unknown(text):
    with pytest.raises(InputError, match="wanted notes 1 to 2"):
        NotePrompt(2).parse(text)
    with pytest.raises(InputError, match="wanted notes"):
        NotedReader(lambda prompt: text, NotePrompt(2)).read("q", ["a", "b"])
    assert NotedReader(lambda prompt: text, NotePrompt(2), "unknown").read("q", ["a", "b"]).unknown


def test_documents_are_counted():
    with pytest.raises(InputError, match="takes 5 documents, got 0"):
        NotePrompt().render("q", [])
    with pytest.raises(InputError, match="takes 2 documents, got 3"):
        NotePrompt(2).render("q", ["a", "b", "c"])
    with pytest.raises(InputError, match="at least one document"):
        NotePrompt(0)
    with pytest.raises(InputError, match="wanted 2 notes"):
        NotePrompt(2).write(Notes((NoteKind.ANSWER,), ("a",), "b"))


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 7, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(11, (3, 7), generator=generator)
    labels[:, :2] = -100
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[:, 6] = True
    mask[0, 0] = True  # an ignored label counts nowhere
    return logits, labels, mask


def test_the_loss_is_two_means():
    logits, labels, mask = batch()
    each = -logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    both, answer = each[:, 2:].mean(), each[:, 6].mean()
    for weight in (0, 0.3, 1):
        wanted = (1 - weight) * both + weight * answer
        torch.testing.assert_close(NoteLoss(weight, shift=False)(logits, labels, mask), wanted)
    shifted = NoteLoss()(logits, labels, mask)
    torch.testing.assert_close(shifted, NoteLoss(shift=False)(logits[:, :-1], labels[:, 1:], mask[:, 1:]))


def test_long_notes_do_not_drown_the_answer():
    logits = torch.zeros(1, 1001, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(1, 1001, dtype=torch.bool)
    mask[0, -1] = True
    labels = torch.zeros(1, 1001, dtype=torch.int64)
    NoteLoss(shift=False)(logits, labels, mask).backward()
    share = logits.grad[0, -1].norm() / logits.grad[0].norm(dim=1).sum()
    assert share > 0.5


def test_bad_masks_and_weights_are_told():
    logits, labels, mask = batch()
    with pytest.raises(InputError, match="agree"):
        NoteLoss()(logits, labels[:, :5], mask)
    with pytest.raises(InputError, match="marks no label"):
        NoteLoss()(logits, labels, torch.zeros_like(mask))
    with pytest.raises(InputError, match="answer_weight"):
        NoteLoss(1.5)


def test_answers_are_compared_as_the_squad_script_does():
    assert normalised_answer("The  Eiffel-Tower!") == "eiffeltower"
    assert exact_match("an Apple.", ["pear", "apple"])
    assert not exact_match("apples", ["apple"])
    assert token_f1("the cat sat", ["cat sat down"]) == pytest.approx(0.8)
    assert token_f1("a", ["the"]) == 1
    assert token_f1("", ["cat"]) == 0
    assert token_f1("x x y", ["x z", "x x"]) == pytest.approx(0.8)
    assert is_unknown("Unknown.")
    assert not is_unknown("unknown man")
    assert holds_answer("It was Ann Lee, then.", ["ann lee"])
    assert not holds_answer("Annabel", ["ann"])
    with pytest.raises(InputError, match="in a list"):
        exact_match("a", "a")
    with pytest.raises(InputError, match="at least one"):
        token_f1("a", [])


CORPUS = [
    f"the {thing} of {who} is {thing[0]}{who}" for thing in ("dog", "cat", "bird") for who in ("ann", "bob", "eve")
]
QUESTIONS = [Question(f"what is the {thing} of ann", (f"{thing[0]}ann",)) for thing in ("dog", "cat", "bird")]


def honest(questions, documents):
    """Answers from the document that holds all the words of the question."""
    replies = []
    for question, some in zip(questions, documents, strict=True):
        asked = set(question.split()) - {"what"}
        replies.append(next((d.split()[-1] for d in some if asked <= set(d.split())), "unknown"))
    return replies


def test_the_curve_of_an_honest_reader():
    retriever = BM25Retriever(CORPUS)
    curve = noise_curve(honest, QUESTIONS, retriever, (0, 0.75, 1.0), np.random.default_rng(0), k=4)
    assert curve.asked.sum(axis=1).tolist() == [0, 3, 3]
    assert curve.exact_match(0.75).value == 1
    assert curve.rejection(0.75).value == 0
    assert curve.exact_match(1.0).value == 0
    assert curve.rejection(1.0).value == 1
    assert curve.token_f1(0.75).value == 1
    gullible = noise_curve(
        lambda q, d: [some[0].split()[-1] for some in d], QUESTIONS, retriever, (1.0,), np.random.default_rng(0)
    )
    assert curve.difference(gullible, 1.0, "rejected").value == 1
    with pytest.raises(InputError, match="enough documents"):
        curve.exact_match(0)
    with pytest.raises(InputError, match="has the ratios"):
        curve.exact_match(0.5)
    point = noise_curve(honest, QUESTIONS, retriever, (0.8, 1.0), np.random.default_rng(0))
    assert len(point.table().rows) == 2
    assert point.curve().series[1].y == (0.0, 1.0)


def test_noise_is_what_looks_like_an_answer_and_holds_none():
    seen = []
    noise_curve(
        lambda q, d: seen.extend(d) or [""] * len(q),
        QUESTIONS[:1],
        BM25Retriever(CORPUS),
        (1.0,),
        np.random.default_rng(0),
        k=4,
    )
    assert set(seen[0]) == {
        "the cat of ann is cann",
        "the bird of ann is bann",
        "the dog of bob is dbob",
        "the dog of eve is deve",
    }


def test_bad_curves_are_told():
    retriever, generator = BM25Retriever(CORPUS), np.random.default_rng(0)
    with pytest.raises(InputError, match="ratios in"):
        noise_curve(honest, QUESTIONS, retriever, (1.5,), generator)
    with pytest.raises(InputError, match="wanted questions"):
        noise_curve(honest, [], retriever, (1.0,), generator)
    with pytest.raises(InputError, match="returned 1 answers"):
        noise_curve(lambda q, d: ["x"], QUESTIONS, retriever, (1.0,), generator)
    with pytest.raises(InputError, match="no right answer"):
        Question("q", ())
