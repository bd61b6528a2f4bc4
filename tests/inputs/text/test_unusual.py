"""Detectors fitted on clean texts see what they are for; the language model is a distribution."""

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from holdfast.core.errors import InputError
from holdfast.inputs.detection.metrics import auroc
from holdfast.inputs.text import AttributionDetector, FluencyDetector, edit_text, words
from holdfast.inputs.text.edits import repeat_sentences, shuffle_words
from holdfast.inputs.text.unusual import TrigramModel

SUBJECTS, VERBS, THINGS = ["tom", "ann", "the cook"], ["buys", "sells", "counts"], ["apples", "pens", "red hats"]


def clean(n, seed=0):
    stream = np.random.default_rng(seed)

    def sentence():
        return f"{stream.choice(SUBJECTS)} {stream.choice(VERBS)} {stream.integers(2, 9)} {stream.choice(THINGS)}."

    return [" ".join(sentence() for _ in range(stream.integers(3, 6))) for _ in range(n)]


def test_the_language_model_is_a_distribution_and_prefers_what_it_saw():
    texts = [words(text) for text in clean(30)]
    model = TrigramModel().fit(texts)
    known = sorted({word for text in texts for word in text})
    for context in ([], ["tom"], ["tom", "buys"], ["buys", "zebra"]):
        following = [2 ** -model.surprisal([*context, word])[-1] for word in known]
        unseen = 2 ** -model.surprisal([*context, "unseen"])[-1]
        assert sum(following) + unseen == pytest.approx(1)
    assert 2 ** -model.rarity(["unseen"])[0] + sum(2 ** -model.rarity(known)) == pytest.approx(1)
    assert model.surprisal(words("tom buys 3 pens")).mean() < model.surprisal(words("pens 3 buys tom")).mean()


def test_shuffled_and_repeated_texts_do_not_read_like_clean_ones():
    detector = FluencyDetector().fit(clean(200))
    fresh, stream = clean(60, seed=1), np.random.default_rng(0)
    typical = detector.score_samples(fresh)
    for edit in (shuffle_words, repeat_sentences):
        changed = detector.score_samples([edit_text(text, edit, stream) for text in fresh])
        assert auroc(typical, changed).value > 0.9
    assert (detector.predict(fresh) == 1).mean() > 0.8
    np.testing.assert_array_equal(detector.predict(fresh) == 1, detector.decision_function(fresh) >= 0)


def test_a_scorer_adds_how_much_it_depends_on_order():
    def reads_order(texts):
        return np.array([len(words(text)[0]) for text in texts])

    plain, scored = FluencyDetector().fit(clean(60)), FluencyDetector(score=reads_order).fit(clean(60))
    assert scored.features(clean(5)).shape[1] == plain.features(clean(5)).shape[1] + 1


def test_concentrated_attributions_stand_out():
    stream = np.random.default_rng(0)
    spread = [stream.random(int(n)) for n in stream.integers(10, 30, 100)]
    concentrated = [np.concatenate([[30.0], values]) for values in spread[:40]]
    for outlier in (None, IsolationForest(random_state=1)):
        detector = AttributionDetector(outlier=outlier).fit(spread)
        assert auroc(detector.score_samples(spread), detector.score_samples(concentrated)).value > 0.95


def test_features_at_known_attributions():
    detector = AttributionDetector(prompt={"why"})
    even, single = detector.features([np.ones(8), np.eye(8)[0]], tokens=[["why"] * 2 + ["so"] * 6, ["why"] * 8])
    assert even[:5].tolist() == pytest.approx([0, 1, 1, 1, 1])
    assert even[-1] == pytest.approx(0.25)
    assert single[:5].tolist() == pytest.approx([7 / 8, 8, 8 / 5, 0, 1])
    assert single[-1] == 1
    assert detector.features([np.array([1.0, -1.0])], tokens=[["a", "b"]])[0, 4] == 0


def test_bad_requests_are_refused():
    with pytest.raises(InputError, match="at least 20"):
        FluencyDetector().fit(clean(3))
    with pytest.raises(InputError, match="empty"):
        FluencyDetector().fit([*clean(25), " . "])
    with pytest.raises(InputError, match="at least 20"):
        AttributionDetector().fit([np.ones(3)])
    with pytest.raises(InputError, match="tokens="):
        AttributionDetector(prompt={"why"}).fit([np.ones(3)] * 20)
    with pytest.raises(InputError, match="contamination"):
        AttributionDetector(contamination=0).fit([np.ones(3)] * 20)
    with pytest.raises(InputError, match="empty"):
        AttributionDetector().features([np.zeros(0)])
    with pytest.raises(InputError, match="3 words but 2"):
        AttributionDetector(prompt={"why"}).features([np.ones(2)], tokens=[["a", "b", "c"]])
