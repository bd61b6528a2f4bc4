"""Red teaming: a diverse sample, classifiers that agree with counts, the reward against sums, a policy that learns."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from holdfast.core.errors import InputError
from holdfast.inputs.text.established import EstablishedClassifier
from holdfast.inputs.text.exploit import GRUPromptPolicy, PromptPolicy, exploit
from holdfast.inputs.text.redteam import DiversityReward, coverage_report, explore


def rng(seed=0):
    return np.random.default_rng(seed)


def talk(n, generator):
    """Ninety of a hundred texts say one thing."""
    return [f"text {i} " + ("rare" if i % 10 == 0 else "usual") for i in range(n)]


def directions(texts):
    return np.array(
        [[0.0, int(t.split()[1]) + 1.0] if t.endswith("rare") else [int(t.split()[1]) + 1.0, 0.01] for t in texts]
    )


def test_exploring_keeps_as_many_of_what_is_rare():
    found = explore(talk, directions, 500, rng(), clusters=2, per_cluster=40)
    assert len(found.kept) == 80
    assert sum(text.endswith("rare") for text in found.kept) == 40
    assert found.dropped == 0
    assert set(found.clusters.tolist()) == {0, 1}
    assert all(found.texts[place] == text for place, text in zip(found.chosen, found.kept, strict=True))
    small = explore(talk, directions, 50, rng(), clusters=2, per_cluster=40)
    assert sum(text.endswith("rare") for text in small.kept) == 5


def test_texts_without_a_direction_are_dropped_and_counted():
    def embed(texts):
        made = directions(texts)
        made[0], made[1], made[2] = np.nan, 0, np.inf
        return made

    found = explore(talk, embed, 100, rng(), clusters=2)
    assert found.dropped == 3
    assert found.clusters[:3].tolist() == [-1, -1, -1]
    assert not set(found.chosen.tolist()) & {0, 1, 2}
    with pytest.raises(InputError, match="too few for 98 clusters"):
        explore(talk, embed, 100, rng(), clusters=98)
    with pytest.raises(InputError, match="100 texts and returned"):
        explore(talk, lambda texts: directions(texts)[1:], 100, rng(), clusters=2)


TEXTS = [f"we {'hate' if i % 4 == 0 else 'like'} number {i}" for i in range(80)]
LABELS = ["bad" if i % 4 == 0 else "good" for i in range(80)]


def test_the_ensemble_learns_and_scores_the_bad_class():
    model = EstablishedClassifier(bad="bad").fit(TEXTS, LABELS)
    assert model.classes_.tolist() == ["bad", "good"]
    assert len(model.estimators_) == 5
    assert model.recalls_.shape == (5, 2)
    assert model.predict(["they hate it", "they like it"]).tolist() == ["bad", "good"]
    score = model.score_bad(["they hate it", "they like it"])
    assert score[0] > 0 > score[1]
    p = np.stack([member.predict_proba(["they hate it"])[0, 0] for member in model.estimators_])
    assert score[0] == pytest.approx(np.log(p / (1 - p)).mean())
    np.testing.assert_allclose(model.predict_proba(TEXTS[:3]).sum(axis=1), 1)
    last = EstablishedClassifier().fit(TEXTS, LABELS)
    np.testing.assert_allclose(last.score_bad(TEXTS[:4]), -model.score_bad(TEXTS[:4]))


def test_it_is_an_estimator():
    model = EstablishedClassifier(ensemble=2, random_state=3)
    again = clone(model)
    assert again.get_params() == model.get_params()
    np.testing.assert_array_equal(model.fit(TEXTS, LABELS).score_bad(TEXTS), again.fit(TEXTS, LABELS).score_bad(TEXTS))
    assert cross_val_score(EstablishedClassifier(ensemble=2), TEXTS, LABELS).mean() > 0.95


def test_classes_are_balanced_by_paraphrases():
    seen = []

    def paraphrase(text, generator):
        seen.append(text)
        return text.replace("we", "they")

    base = make_pipeline(CountVectorizer(), LogisticRegression())
    EstablishedClassifier(base, ensemble=1, bad="bad", paraphrase=paraphrase).fit(TEXTS, LABELS)
    assert set(seen) <= {text for text, label in zip(TEXTS, LABELS, strict=True) if label == "bad"}
    assert len(seen) == 48 - 16  # of 64 texts that train, 48 are good


def test_a_member_that_misses_a_class_is_trained_again_and_then_told():
    with pytest.warns(UserWarning, match="finds 0% of a class"):
        model = EstablishedClassifier(DummyClassifier(strategy="prior"), ensemble=2, retries=3).fit(TEXTS, LABELS)
    assert model.retrained_ == 6


def test_labels_of_one_class_are_refused():
    with pytest.raises(InputError, match="at least two classes"):
        EstablishedClassifier().fit(TEXTS, ["good"] * 80)
    with pytest.raises(InputError, match="twice or more"):
        EstablishedClassifier().fit(TEXTS[:3], ["good", "good", "bad"])
    with pytest.raises(InputError, match="none of the labels"):
        EstablishedClassifier(bad="worse").fit(TEXTS, LABELS)


@given(st.integers(2, 8), st.integers(0, 1000))
def test_the_reward_is_the_sum_over_the_others(n, seed):
    generator = rng(seed)
    embeddings, scores = generator.normal(size=(n, 3)), 4 * generator.normal(size=n)
    rewards = DiversityReward(weight=2.0, scale=1.5)(scores, embeddings, ["a long enough prompt"] * n)
    for i in range(n):
        others = [np.exp(-np.abs(embeddings[i] - embeddings[j]).sum() / 1.5) for j in range(n) if j != i]
        assert rewards[i] == pytest.approx(np.clip(0.5 * scores[i] - 2 * np.mean(others), -5, 5))


def test_equal_prompts_pay_in_full_short_ones_the_limit_and_one_alone_nothing():
    same, long = np.ones((3, 4)), ["a long enough prompt"] * 3
    np.testing.assert_allclose(DiversityReward()(np.zeros(3), same, long), -5)
    np.testing.assert_allclose(DiversityReward(metric="cosine", weight=1.0)(np.zeros(3), same, long), -1)
    np.testing.assert_allclose(DiversityReward(weight=0.0)(np.zeros(3), same, ["x" * 10, "x" * 11, ""]), [-5, 0, -5])
    assert DiversityReward()(np.array([1.0]), same[:1], long[:1])[0] == 0.5
    with pytest.raises(InputError, match="finite"):
        DiversityReward()(np.array([np.nan] * 3), same, long)
    with pytest.raises(InputError, match="one score and embedding"):
        DiversityReward()(np.zeros(3), same, long[:2])
    with pytest.raises(InputError, match="scale > 0"):
        DiversityReward(scale=0.0)


WORDS = ["alpha", "beta", "gamma", "delta"]


def policy(seed=0, length=3):
    torch.manual_seed(seed)
    return GRUPromptPolicy(WORDS, length, width=16)


def test_probabilities_of_all_prompts_sum_to_one_and_are_those_of_the_samples():
    one = policy(length=3)
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    p = one.log_prob(every).exp()
    assert float(p.sum().detach()) == pytest.approx(1, abs=1e-5)
    drawn = one.sample(20_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn[:, 0] * 16 + drawn[:, 1] * 4 + drawn[:, 2], minlength=64)
    chi = ((counts - 20_000 * p) ** 2 / (20_000 * p)).sum()
    assert float(chi.detach()) < 120  # 63 degrees of freedom, p = 1e-5
    assert one.text(drawn[:1])[0].split()[0] in WORDS
    assert isinstance(one, PromptPolicy)


def likes(word):
    return lambda prompts, completions: np.array([float(text.split().count(word)) for text in completions])


def test_the_policy_learns_what_is_rewarded_and_kl_holds_it_back():
    generator = torch.Generator().manual_seed(0)
    free, held = policy(), policy()
    run = exploit(free, list, likes("beta"), 60, generator, kl=0.0, batch=64, rate=2e-2)
    assert run.rewards[-1] > 2.7
    assert run.distinct[-1] < run.distinct[0] / 3
    slow = exploit(held, list, likes("beta"), 60, generator, kl=5.0, batch=64, rate=2e-2)
    assert slow.divergences[-1] < run.divergences[-1] / 5
    assert run.divergences[0] == pytest.approx(0, abs=1e-6)
    assert (slow.coefficients[1:] < slow.coefficients[:-1]).all()  # below its target the penalty is relaxed
    tight = exploit(policy(), list, likes("beta"), 30, generator, kl=0.01, kl_target=0.01, batch=64, rate=2e-2)
    assert tight.coefficients[-1] > 0.01


def test_the_start_is_not_trained_and_training_repeats():
    first, second = policy(), policy()
    before = copy.deepcopy(first.state_dict())
    for one in (first, second):
        exploit(one, list, likes("beta"), 3, torch.Generator().manual_seed(1), batch=16)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name])
        assert not torch.equal(value, before[name])


def test_bad_settings_of_a_policy_are_told():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(InputError, match="different words"):
        GRUPromptPolicy(["a", "a"])
    with pytest.raises(InputError, match="steps >= 1"):
        exploit(policy(), list, likes("beta"), 0, generator)
    with pytest.raises(InputError, match="4 finite numbers"):
        exploit(policy(), list, lambda p, c: np.full(4, np.nan), 1, generator, batch=4)


def test_coverage_counts_and_mean_distance():
    embeddings = rng().normal(size=(30, 5))
    report = coverage_report(["a", "b"] * 15, np.arange(30) < 6, embeddings)
    assert report.bad_rate.value == 0.2
    assert report.distinct == 2
    assert report.mean_distance == pytest.approx(pdist(embeddings, "cosine").mean())
    same = coverage_report(["a"] * 4, np.zeros(4, dtype=bool), np.ones((4, 3)))
    assert same.mean_distance == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="at least 2 prompts"):
        coverage_report(["a"], np.array([True]), np.ones((1, 2)))
