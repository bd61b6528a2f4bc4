"""The smoke check of `chain-of-note` runs; the closed world is what it says."""

import torch

from holdfast.papers.inputs import chain_of_note
from holdfast.papers.inputs.chain_of_note import FIRST_RELATION, FIRST_VALUE, IRRELEVANT, UNKNOWN
from holdfast.papers.paper import Scale


def test_smoke_holds():
    assert chain_of_note.check(Scale.SMOKE).holds


def test_training_questions_are_answered_by_their_documents_or_by_what_is_known():
    world = chain_of_note.World(3)
    batch = world.batch(torch.Generator().manual_seed(0))
    subject, relation = batch.questions[:, 0], batch.questions[:, 1] - FIRST_RELATION
    assert not world.parts["never asked"][subject, relation].any()
    match = (batch.documents[:, :, 0] == subject[:, None]) & (batch.documents[:, :, 1] == batch.questions[:, 1:])
    assert (match.sum(1) <= 1).all()
    assert ((batch.notes != IRRELEVANT) == match).all()
    known = world.known[subject, relation]
    remembered = torch.where(known, FIRST_VALUE + world.truth[subject, relation], UNKNOWN)
    told = (batch.documents[:, :, 2] * match).sum(1)
    assert torch.equal(batch.answers, torch.where(match.any(1), told, remembered))


def test_a_reader_sees_nothing_that_is_not_yet_written():
    reader = chain_of_note.Reader(True).start(torch.Generator().manual_seed(0)).eval()
    batch = chain_of_note.World(3).batch(torch.Generator().manual_seed(0))
    logits = reader(batch.questions, batch.documents, batch.notes)
    assert logits.shape[1] == chain_of_note.K + 1
    changed = batch.notes.clone()
    changed[:, 2:] = FIRST_VALUE
    torch.testing.assert_close(reader(batch.questions, batch.documents, changed)[:, :3], logits[:, :3])
