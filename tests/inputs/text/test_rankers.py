"""Query likelihood, kernel pooling and the linear ranker do what their formulas say."""

import math

import numpy as np
import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.inputs.text import BM25, DirichletLM, EncodedRanker, KernelPooling, LinearRanker, Vocabulary, words
from holdfast.inputs.text.learning_to_rank import FEATURES
from holdfast.inputs.text.tokens import remembered

CORPUS = ["the cat sat on the mat", "the dog sat", "birds fly"]


def test_query_likelihood_by_hand():
    # 11 words, 8 different ones; "sat" twice, "zebra" never.
    ranker = DirichletLM(mu=10).fit(CORPUS)
    p_sat, p_zebra = 3 / 20, 1 / 20
    wanted = [
        math.log((1 + 10 * p_sat) / 16) + math.log(10 * p_zebra / 16),
        math.log((1 + 10 * p_sat) / 13) + math.log(10 * p_zebra / 13),
        math.log(10 * p_sat / 12) + math.log(10 * p_zebra / 12),
    ]
    np.testing.assert_allclose(ranker("sat zebra", CORPUS), wanted, atol=1e-12)


def test_the_background_is_a_distribution():
    ranker = DirichletLM().fit(CORPUS)
    known = sum(math.exp(ranker(word, [""])[0]) for word in set(words(" ".join(CORPUS))))
    assert known + math.exp(ranker("zebra", [""])[0]) == pytest.approx(1)


def kernel_by_hand(model, query, document):
    weight = model.embedding.weight.detach().double().numpy()
    unit = weight / np.maximum(np.linalg.norm(weight, axis=1, keepdims=True), 1e-12)
    total = float(model.out.bias.detach())
    for w, mu, sigma in zip(model.out.weight[0].tolist(), model.mu.tolist(), model.sigma.tolist()):
        rows = [
            sum(math.exp(-((unit[i] @ unit[j] - mu) ** 2) / (2 * sigma**2)) for j in document if j) for i in query if i
        ]
        total += w * 0.01 * sum(math.log(max(row, 1e-10)) for row in rows)
    return total


def test_kernel_pooling_by_hand_and_pads_count_for_nothing():
    model = KernelPooling(12, 6, generator=torch.Generator().manual_seed(0))
    query, document = torch.tensor([[2, 3, 0], [4, 5, 6]]), torch.tensor([[3, 7, 8, 0, 0], [4, 4, 9, 10, 11]])
    scores = model(query, document)
    for row in range(2):
        wanted = kernel_by_hand(model, query[row].tolist(), document[row].tolist())
        assert float(scores[row].detach()) == pytest.approx(wanted, abs=1e-4)
    torch.testing.assert_close(model(query[:1, :2], document[:1, :3]), scores[:1])


def test_order_of_words_does_not_matter_to_kernel_pooling():
    model = KernelPooling(12, 6, generator=torch.Generator().manual_seed(0))
    query, document = torch.tensor([[2, 3, 5]]), torch.tensor([[3, 7, 8, 9]])
    torch.testing.assert_close(model(query, document), model(query.flip(1), document.flip(1)))


def test_an_encoded_ranker_scores_texts():
    vocabulary = Vocabulary.of(CORPUS)
    model = KernelPooling(len(vocabulary), 6, generator=torch.Generator().manual_seed(0))
    for tokenise in (words, remembered()):
        scores = EncodedRanker(model, vocabulary, tokenise=tokenise)("the cat", CORPUS)
        wanted = [
            float(model(vocabulary.encode([words("the cat")]), vocabulary.encode([words(text)])).detach())
            for text in CORPUS
        ]
        np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert EncodedRanker(model, vocabulary)("cat", []).shape == (0,)
    with pytest.raises(InputError, match="at least one word"):
        EncodedRanker(model, vocabulary, said=0)


def test_features_of_a_pair():
    ranker = LinearRanker().fit_corpus(CORPUS)
    row = dict(zip(FEATURES, ranker.features("the cat flew", CORPUS)[0]))
    assert row["bm25"] == pytest.approx(BM25().fit(CORPUS)("the cat flew", CORPUS)[0])
    assert row["coverage"] == pytest.approx(2 / 3)
    assert row["matches"] == 3
    assert row["longest run"] == 1
    assert row["proximity"] == 1
    assert row["earliness"] == 1
    assert ranker.features("zebra", CORPUS)[2][2:].tolist() == [0, 0, 0, 0, 0, pytest.approx(math.log(3)), 0, 0]


def test_a_linear_ranker_learns_which_feature_tells():
    generator = np.random.default_rng(0)
    vocabulary = [f"w{n}" for n in range(60)]
    documents = [" ".join(generator.choice(vocabulary, 12)) for _ in range(40)]
    queries = [" ".join(generator.permutation(document.split())[:3]) for document in documents]
    grades = [np.eye(40, dtype=int)[row] for row in range(40)]
    ranker = LinearRanker().fit_corpus(documents).fit(queries[:20], [documents] * 20, grades[:20])
    first = [int(ranker(query, documents).argmax()) == row for row, query in enumerate(queries)]
    assert np.mean(first[20:]) > 0.8


def test_bad_requests_are_refused():
    with pytest.raises(InputError, match="mu"):
        DirichletLM(mu=0)
    with pytest.raises(InputError, match="no word"):
        DirichletLM().fit([])
    with pytest.raises(InputError, match="fit"):
        DirichletLM()("cat", CORPUS)
    with pytest.raises(InputError, match="fit_corpus"):
        LinearRanker().features("cat", CORPUS)
    with pytest.raises(InputError, match="weights"):
        LinearRanker()("cat", CORPUS)
    with pytest.raises(InputError, match="learn from"):
        LinearRanker().fit_corpus(CORPUS).fit(["cat"], [CORPUS], [np.ones(3)])
