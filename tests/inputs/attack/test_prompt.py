"""Prompt attacks: the simplex step, the classifier hidden in a denoiser, what the searches find, and what they cost."""

import numpy as np
import pytest
import torch
from scipy import optimize

from holdfast.core.errors import InputError
from holdfast.inputs.attack.prompt import (
    DenoisingLoss,
    HardPrompt,
    PromptRun,
    RandomPrompt,
    SeedSearch,
    TokenSimplexAttack,
    _Drawn,
    attack_success,
    diffusion_classifier_score,
    project_simplex,
)
from holdfast.noise.schedule import VP, per_example

TABLE = torch.randn((30, 6), generator=torch.Generator().manual_seed(0))
PROMPTS = torch.tensor([[1, 2], [3, 4], [5, 6]])
WANTED = torch.tensor([7, 11, 13])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def loss(embeddings, t, generator):
    """Least when the first token of each prompt is the wanted one."""
    return (embeddings[:, 0] - TABLE[WANTED]).square().sum(1)


class Evaluator:
    """Whether the first token is the wanted one; counts what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, tokens, rows, seed):
        assert len(rows) == len(tokens)
        self.asked.append((len(tokens), seed))
        return tokens[:, 0] == WANTED[rows % 3]


def test_the_projection_is_the_nearest_point_of_the_simplex():
    rows = 3 * torch.randn((5, 4), generator=generator(), dtype=torch.float64)
    for row, found in zip(rows.numpy(), project_simplex(rows).numpy(), strict=True):
        assert found.sum() == pytest.approx(1, abs=1e-12)
        nearest = optimize.minimize(
            lambda p, row=row: ((p - row) ** 2).sum(),
            np.full(4, 0.25),
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            method="SLSQP",
        ).x
        np.testing.assert_allclose(found, nearest, atol=1e-5)


def test_draws_are_one_hot_and_gradients_pass_clipped():
    rows = torch.tensor([[[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]], requires_grad=True)
    drawn = _Drawn.apply(rows, generator())
    assert drawn[0, 0].tolist() == [0, 1, 0]
    assert drawn[0, 1, 1] == 0
    assert (drawn.sum(-1) == 1).all()
    (drawn * torch.tensor([3.0, -0.5, -9.0])).sum().backward()
    assert rows.grad[0, 0].tolist() == [1, -0.5, -1]


@pytest.mark.parametrize(
    "attack",
    [
        TokenSimplexAttack(1, iterations=15, lr=0.2),
        TokenSimplexAttack(1, iterations=15, lr=0.2, random_start=True),
        HardPrompt(1, lr=0.2),
    ],
)
def test_the_wanted_tokens_are_found(attack):
    evaluator = Evaluator()
    run = attack.run(PROMPTS, TABLE, loss, [0.5] * 10, evaluator, generator=generator())
    assert run.success.all()
    assert not run.initial.any()
    assert [tokens[0] for tokens in run.tokens] == WANTED.tolist()
    assert [list(tokens[1:]) for tokens in run.tokens] == PROMPTS.tolist()
    assert run.off_simplex < 1e-6
    assert int(run.evaluations.sum()) == sum(asked for asked, _ in evaluator.asked)
    again = attack.run(PROMPTS, TABLE, loss, [0.5] * 10, Evaluator(), generator=generator())
    assert again.tokens == run.tokens


def test_positions():
    added, prompt = torch.tensor([[8, 9]]), torch.tensor([[1, 2, 3, 4]])
    joined = {p: TokenSimplexAttack(2, p).joined(prompt, added)[0].tolist() for p in ("prefix", "suffix", "middle")}
    assert joined == {"prefix": [8, 9, 1, 2, 3, 4], "suffix": [1, 2, 3, 4, 8, 9], "middle": [1, 2, 8, 9, 3, 4]}


def test_prompts_that_succeed_by_themselves_are_left_alone():
    prompts = torch.tensor([[7, 2], [3, 4]])
    run = RandomPrompt(2, evaluations=4).run(prompts, TABLE, Evaluator(), generator=generator())
    assert run.initial.tolist() == [True, False]
    assert run.tokens[0] == (7, 2)
    assert run.evaluations[0] == 1


def test_random_prompts_find_a_token_as_often_as_chance_has_it():
    prompts = torch.ones((400, 2), dtype=torch.int64)
    run = RandomPrompt(1, evaluations=5).run(prompts, TABLE, Evaluator(), generator=generator())
    expected = 1 - (1 - 1 / 30) ** 5
    assert float(run.success.double().mean()) == pytest.approx(expected, abs=0.1)


def test_seed_search_asks_for_other_seeds():
    evaluator = Evaluator()
    run = SeedSearch(3).run(PROMPTS, evaluator)
    assert [seed for _, seed in evaluator.asked] == [0, 1, 2, 3]
    assert not run.success.any()
    assert run.tokens == tuple(map(tuple, PROMPTS.tolist()))


def test_success_comes_in_two_parts():
    run = PromptRun(
        ((1,),) * 4,
        torch.tensor([True, False, False, False]),
        torch.tensor([True, True, True, False]),
        torch.ones(4).long(),
    )
    found = attack_success([run, run])
    assert (found.initial.value, found.gained.value, found.total.value) == (0.25, 0.5, 0.75)
    assert found.total.n == 8


def gaussian_predictor(x, t, embeddings):
    """Exact noise prediction when the data of a condition are N(mean of its embeddings, 0.01)."""
    path = VP()
    scale, deviation = (per_example(part, x) for part in (path.scale(t), path.deviation(t)))
    mean = embeddings.mean(1)
    return deviation * (x - scale * mean) / (deviation**2 + 0.01 * scale**2)


def test_the_loss_of_a_denoiser_tells_conditions_apart():
    conditions = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.9, 0.1]])
    scores = diffusion_classifier_score(gaussian_predictor, z, conditions, [0.1, 0.2, 0.3], VP(), generator=generator())
    assert scores.exp().sum(1).numpy() == pytest.approx(1)
    assert scores.argmax(1).tolist() == [0, 1, 0]
    told = DenoisingLoss(gaussian_predictor, z, VP())
    right, wrong = (told(conditions[list(order)], 0.3, generator(1)) for order in ((0, 1, 0), (1, 0, 1)))
    assert (right < wrong).all()


def test_bad_input_is_told():
    attack = TokenSimplexAttack(3)
    with pytest.raises(InputError, match="context of 4"):
        attack.run(PROMPTS, TABLE, loss, [0.5], Evaluator(), context=4)
    with pytest.raises(InputError, match="embedding table"):
        attack.run(PROMPTS + 30, TABLE, loss, [0.5], Evaluator())
    with pytest.raises(InputError, match="one answer each"):
        attack.run(PROMPTS, TABLE, loss, [0.5], lambda tokens, rows, seed: torch.tensor(True))
    with pytest.raises(InputError, match="at least one time"):
        attack.run(PROMPTS, TABLE, loss, [], Evaluator())
    with pytest.raises(InputError, match=r"\(0, 1\]"):
        DenoisingLoss(gaussian_predictor, torch.zeros(3, 6), VP())(TABLE[PROMPTS], 1.5, generator())
    with pytest.raises(InputError, match="one target a prompt"):
        DenoisingLoss(gaussian_predictor, torch.zeros(2, 6), VP())(TABLE[PROMPTS], 0.5, generator())
    with pytest.raises(InputError, match="one finite number"):
        attack.run(PROMPTS, TABLE, lambda e, t, g: e.sum(), [0.5], Evaluator())
    with pytest.raises(InputError, match="prefix, suffix"):
        TokenSimplexAttack(3, "front")
    with pytest.raises(InputError, match="iteration"):
        TokenSimplexAttack(3, iterations=0)
    with pytest.raises(InputError, match="run"):
        attack_success([])
