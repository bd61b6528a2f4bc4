"""Exchangeability, masks, likelihoods by hand, and what happens to the spread as data come in."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from holdfast.core.errors import InputError
from holdfast.inputs.processes import (
    ConditionalNeuralProcess,
    FunctionPosterior,
    GaussianProcessTasks,
    MartingaleNeuralProcess,
    MetaRegressor,
    exact_log_likelihoods,
    gathered,
)
from holdfast.inputs.processes.neural import fit_process
from holdfast.inputs.processes.predictive import joint_log_likelihood

SOURCE = GaussianProcessTasks()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def martingale(attention=False, **settings):
    return MartingaleNeuralProcess(1, 1, 16, attention=attention, generator=seeded(), **settings).eval()


def conditional(attention=False):
    return ConditionalNeuralProcess(1, 1, 16, attention=attention, generator=seeded()).eval()


@pytest.fixture(scope="module")
def tasks():
    return SOURCE.sample(12, seeded(5))


MODELS = pytest.mark.parametrize("model", [martingale(), martingale(True), conditional(), conditional(True)])


@MODELS
def test_the_order_of_the_context_does_not_matter(model):
    tasks = SOURCE.sample(6, seeded(1), same_sizes=True)
    order = torch.randperm(tasks.xc.shape[1], generator=seeded(2))
    first = model.predict(tasks.xc, tasks.yc, tasks.xt, 3, generator=seeded(3))
    again = model.predict(tasks.xc[:, order], tasks.yc[:, order], tasks.xt, 3, generator=seeded(3))
    torch.testing.assert_close(first.means, again.means, atol=1e-5, rtol=0)
    torch.testing.assert_close(first.scales, again.scales, atol=1e-5, rtol=0)


@MODELS
def test_padding_and_other_targets_change_nothing(model, tasks):
    row, n, t = 4, int(tasks.context_mask[4].sum()), int(tasks.target_mask[4].sum())
    noise = torch.randn((2, len(tasks), 20, 16), generator=seeded(3))
    if isinstance(model, MartingaleNeuralProcess):
        model._noise = lambda samples, r, generator: noise if len(r) == len(tasks) else noise[:, row : row + 1]
    padded = model.predict(tasks.xc, tasks.yc, tasks.xt, 2, context_mask=tasks.context_mask)
    alone = model.predict(tasks.xc[row : row + 1, :n], tasks.yc[row : row + 1, :n], tasks.xt[row : row + 1, :t], 2)
    torch.testing.assert_close(padded.means[:, row, :t], alone.means[:, 0], atol=1e-5, rtol=0)
    if isinstance(model, MartingaleNeuralProcess):
        del model._noise


def test_imagined_data_are_permuted_by_permuting_the_noise_and_differ_between_samples(tasks):
    model = martingale()
    r = torch.randn((12, tasks.xc.shape[1], 16), generator=seeded(1))
    noise = torch.randn((3, 12, 20, 16), generator=seeded(2))
    order = torch.randperm(20, generator=seeded(3))
    found = model.imagined(r, tasks.context_mask, noise)
    torch.testing.assert_close(
        model.imagined(r, tasks.context_mask, noise[:, :, order]), found[:, :, order], atol=1e-5, rtol=0
    )
    drawn = model._noise(3, r, seeded(4))
    assert len(drawn.reshape(-1, 16).unique(dim=0)) == 3 * 12 * 20


def test_one_sample_has_the_plain_likelihood_and_mixtures_at_least_the_mean_of_logs(tasks):
    found = martingale().predict(tasks.xc, tasks.yc, tasks.xt, 7, context_mask=tasks.context_mask, generator=seeded())
    densities = found.log_densities(tasks.yt)
    plain = (densities * tasks.target_mask).sum(2) / tasks.target_mask.sum(1)
    torch.testing.assert_close(joint_log_likelihood(densities[:1], tasks.target_mask), plain[0])
    assert (joint_log_likelihood(densities, tasks.target_mask) >= plain.mean(0) - 1e-6).all()


def test_the_joint_likelihood_is_that_of_the_mixture_written_out():
    generator = np.random.default_rng(0)
    means, scales, y = (
        generator.normal(size=(3, 1, 4, 1)),
        generator.uniform(0.5, 2, (3, 1, 4, 1)),
        generator.normal(size=4),
    )
    found = FunctionPosterior(torch.from_numpy(means), torch.from_numpy(scales))
    wanted = np.log(np.mean([norm(means[k, 0, :, 0], scales[k, 0, :, 0]).pdf(y).prod() for k in range(3)])) / 4
    ours = found.log_likelihood(torch.from_numpy(y)[None, :, None], torch.ones((1, 4), dtype=torch.bool))
    np.testing.assert_allclose(ours.item(), wanted)
    np.testing.assert_allclose(found.deviation.numpy() ** 2, means.var(0) + (scales**2).mean(0))
    np.testing.assert_allclose(found.spread.numpy(), means.std(0))


def test_the_loss_is_the_sum_of_three_terms():
    model, tasks = martingale(samples=4), SOURCE.sample(5, seeded(1))
    given = (tasks.xc, tasks.yc, tasks.xt, tasks.yt)
    masks = {"context_mask": tasks.context_mask, "target_mask": tasks.target_mask}
    loss = model.loss(*given, **masks, generator=seeded(9))
    r = model.encoder(torch.cat([tasks.xc, tasks.yc], -1))
    pseudo = model.imagined(r, tasks.context_mask, model._noise(4, r, seeded(9)))
    sets = model._aggregated(tasks.xc, r, tasks.context_mask, tasks.xt, pseudo)

    def likelihood(phi):
        wide = phi if phi.dim() == 4 else phi[None]
        return model.decoded(tasks.xt, wide).log_densities(tasks.yt)

    together = joint_log_likelihood(likelihood(sets[0]), tasks.target_mask)
    context, alone = ((likelihood(part) * tasks.target_mask).sum(2) / tasks.target_mask.sum(1) for part in sets[1:])
    torch.testing.assert_close(loss, -(together + context.mean(0) + alone.mean(0)).mean())
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_more_context_outweighs_what_is_imagined():
    model = martingale()
    x = torch.linspace(-2, 2, 400)[None, :, None]
    y = torch.sin(x)
    spreads = [
        model.predict(x[:, :n], y[:, :n], x[:, :20], 30, generator=seeded()).spread.mean().item() for n in (3, 30, 400)
    ]
    assert spreads[0] > spreads[1] > spreads[2]


def test_the_noise_is_never_below_its_floor():
    found = martingale().predict(torch.zeros(1, 2, 1), torch.full((1, 2, 1), 1e3), torch.full((1, 3, 1), 1e3), 4)
    assert (found.scales >= 0.1).all()


def test_training_lowers_the_loss_and_functions_follow_the_data():
    model = MartingaleNeuralProcess(1, 1, 32, samples=2, pseudo=8, generator=seeded())
    data = seeded(1)
    losses = fit_process(model, lambda _: SOURCE.sample(8, data, same_sizes=True), 150, seeded(2), step=3e-3)
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.3
    functions = model.sample_functions(torch.zeros(1, 5, 1), torch.full((1, 5, 1), 0.8), torch.zeros(1, 1, 1), 9)
    assert functions.shape == (9, 1, 1, 1)
    assert not functions.requires_grad


def test_tasks_have_the_sizes_and_the_covariance_they_should():
    tasks, kernels = SOURCE.sample_with_kernels(500, seeded(3))
    context, target = tasks.context_mask.sum(1), tasks.target_mask.sum(1)
    assert context.min() >= 3
    assert target.min() >= 3
    assert (context + target).max() <= 50
    assert context.max() > 40
    assert target.max() > 40
    assert (tasks.xc.abs() <= 2).all()
    fixed = GaussianProcessTasks(lengths=(0.5, 0.5), scales=(1.0, 1.0))
    y = torch.cat([fixed.sample(400, seeded(seed), same_sizes=True).yc[:, :3, 0].flatten() for seed in range(5)])
    assert abs(y.var().item() - 1 - 0.02**2) < 0.1
    assert ((kernels >= torch.tensor([0.1, 0.1])) & (kernels <= torch.tensor([0.6, 1.0]))).all()


def test_exact_likelihoods_follow_from_the_joint_normal_distribution():
    tasks, kernels = SOURCE.sample_with_kernels(3, seeded(4))
    ours = exact_log_likelihoods(tasks, kernels, SOURCE.noise)
    for row, (length, scale) in enumerate(kernels.double().tolist()):
        n, t = int(tasks.context_mask[row].sum()), int(tasks.target_mask[row].sum())
        x = torch.cat([tasks.xc[row, :n, 0], tasks.xt[row, :t, 0]]).double().numpy()
        y = torch.cat([tasks.yc[row, :n, 0], tasks.yt[row, :t, 0]]).double().numpy()
        covariance = scale**2 * np.exp(-((x[:, None] - x) ** 2) / (2 * length**2)) + 0.02**2 * np.eye(n + t)
        joint = multivariate_normal(np.zeros(n + t), covariance).logpdf(y)
        context = multivariate_normal(np.zeros(n), covariance[:n, :n]).logpdf(y[:n])
        np.testing.assert_allclose(ours[row], (joint - context) / t, rtol=1e-5)


def sines(count, seed):
    generator = np.random.default_rng(seed)
    tasks = []
    for _ in range(count):
        size, level = int(generator.integers(3, 8)), generator.uniform(-1, 1)
        x = generator.uniform(-1, 1, (size + 5, 2)).astype(np.float32)
        y = np.full((size + 5, 1), level, dtype=np.float32)
        tasks.append((x[:size], y[:size], x[size:], y[size:]))
    return tasks


@pytest.mark.parametrize("kind", ["martingale", "conditional"])
def test_the_regressor_learns_to_repeat_a_level(kind):
    model = MetaRegressor(kind, hidden=16, pseudo=5, samples=2, steps=200, step=1e-2).fit(sines(100, 0))
    errors = [abs(model.predict(xc, yc, xt) - yt).mean() for xc, yc, xt, yt in sines(20, 1)]
    assert np.mean(errors) < 0.2
    xc, yc, xt, _ = sines(1, 2)[0]
    np.testing.assert_array_equal(model.predict(xc, yc, xt), model.predict(xc, yc, xt))
    assert len(model.losses_) == 200


def test_ragged_tasks_are_padded_and_marked():
    parts = sines(4, 3)
    tasks = gathered(parts)
    for row, (xc, yc, xt, yt) in enumerate(parts):
        for table, mask, part in (
            (tasks.xc, tasks.context_mask, xc),
            (tasks.yc, tasks.context_mask, yc),
            (tasks.xt, tasks.target_mask, xt),
            (tasks.yt, tasks.target_mask, yt),
        ):
            np.testing.assert_array_equal(table[row][mask[row]].numpy(), part)
    assert len(tasks.part(slice(1, 3))) == 2


@MODELS
def test_contexts_that_do_not_fit_are_refused(model):
    x, y = torch.zeros(2, 4, 1), torch.zeros(2, 4, 1)
    broken = y.clone()
    broken[1, 2] = math.nan
    empty = torch.tensor([[True] * 4, [False] * 4])
    for given in ((x, y[:, :3], x), (x[0], y[0], x[0]), (torch.zeros(2, 4, 2), y, x), (x, broken, x)):
        with pytest.raises((InputError, TypeError)):
            model.predict(*given)
    with pytest.raises(InputError, match="at least one context point"):
        model.predict(x, y, x, context_mask=empty)
    with pytest.raises(InputError, match="NaN"):
        model.loss(x, y, x, broken)
    hidden = broken.isfinite()[..., 0]
    assert model.loss(x, y, x, broken.nan_to_num(), target_mask=hidden).isfinite()


def test_settings_are_checked():
    for settings in ({"samples": 0}, {"pseudo": 0}, {"heads": 3}):
        with pytest.raises(InputError):
            martingale(**settings)
    with pytest.raises(InputError):
        ConditionalNeuralProcess(0, 1)
    with pytest.raises(InputError):
        martingale().predict(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), 0)
    for settings in ({"noise": 0.0}, {"lengths": (0.5, 0.1)}, {"fewest": 30}):
        with pytest.raises(InputError):
            GaussianProcessTasks(**settings)
    with pytest.raises(InputError, match="kind"):
        MetaRegressor("bayesian").fit(sines(2, 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: [],
        lambda t: [(t[0][0], t[0][1][:1], t[0][2], t[0][3])],
        lambda t: [(t[0][0][:0], t[0][1][:0], t[0][2], t[0][3])],
        lambda t: [t[0], (t[1][0][:, :1], t[1][1], t[1][2][:, :1], t[1][3])],
        lambda t: [(t[0][0], t[0][1] * np.nan, t[0][2], t[0][3])],
    ],
)
def test_tasks_that_do_not_fit_are_refused(change):
    with pytest.raises(InputError):
        gathered(change(sines(2, 0)))
