"""Attention from outside: temperature is what the formula says on every path, and rollouts are what was computed."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.attack.attention import SmoothedAttention, attention_maps, attention_on, attention_rollout

WIDTH, HEADS = 8, 2


def tokens(batch=3, count=5, seed=0):
    return torch.randn(batch, count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Plain(nn.Module):
    """Self-attention written by hand from one packed projection, at any temperature; keeps its weights."""

    def __init__(self, layer, temperature=1.0):
        super().__init__()
        self.layer, self.temperature, self.weights = layer, temperature, None

    def forward(self, x):
        batch, count, _ = x.shape
        split = F.linear(x, self.layer.in_proj_weight, self.layer.in_proj_bias)
        q, k, v = split.reshape(batch, count, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        self.weights = (q @ k.transpose(-1, -2) / (math.sqrt(WIDTH // HEADS) * self.temperature)).softmax(-1)
        return self.layer.out_proj((self.weights @ v).transpose(1, 2).reshape(batch, count, WIDTH))


class MultiHead(nn.Module):
    def __init__(self, layer, **options):
        super().__init__()
        self.layer, self.options = layer, options

    def forward(self, x):
        return self.layer(x, x, x, **self.options)[0]


class DotProduct(Plain):
    """The same through `scaled_dot_product_attention`, arguments by name or by place."""

    named = False

    def forward(self, x):
        batch, count, _ = x.shape
        split = F.linear(x, self.layer.in_proj_weight, self.layer.in_proj_bias)
        q, k, v = split.reshape(batch, count, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        given = {"query": q, "key": k, "value": v}
        mixed = F.scaled_dot_product_attention(**given) if self.named else F.scaled_dot_product_attention(q, k, v)
        return self.layer.out_proj(mixed.transpose(1, 2).reshape(batch, count, WIDTH))


def multi_head(**options):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def named(layer):
    model = DotProduct(layer)
    model.named = True
    return model


PATHS = {
    "weights asked for": lambda layer: MultiHead(layer),
    "weights of each head": lambda layer: MultiHead(layer, average_attn_weights=False),
    "no weights": lambda layer: MultiHead(layer, need_weights=False),
    "dot product": DotProduct,
    "dot product by name": named,
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("temperature", [0.5, 1.5, 4.0])
def test_temperature_is_what_the_formula_says(path, temperature):
    layer, x = multi_head(), tokens()
    with torch.no_grad():  # where torch would take its fused fast path
        found = SmoothedAttention(PATHS[path](layer).eval(), temperature)(x)
    torch.testing.assert_close(found, Plain(layer, temperature)(x).detach())
    assert not torch.allclose(found, Plain(layer)(x), atol=1e-3)


def test_separate_projections_are_smoothed_as_well():
    layer, x = multi_head(kdim=WIDTH, vdim=WIDTH), tokens()
    separate = multi_head(kdim=6, vdim=WIDTH)
    assert separate.in_proj_weight is None
    key = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q = F.linear(x, separate.q_proj_weight, separate.in_proj_bias[:WIDTH]).reshape(3, 5, HEADS, -1).transpose(1, 2)
    k = F.linear(key, separate.k_proj_weight, separate.in_proj_bias[WIDTH : 2 * WIDTH])
    v = F.linear(x, separate.v_proj_weight, separate.in_proj_bias[2 * WIDTH :])
    k, v = (part.reshape(3, 5, HEADS, -1).transpose(1, 2) for part in (k, v))
    mixed = (q @ k.transpose(-1, -2) / (math.sqrt(WIDTH // HEADS) * 3)).softmax(-1) @ v
    wanted = separate.out_proj(mixed.transpose(1, 2).reshape(3, 5, WIDTH))
    smoothed = SmoothedAttention(lambda inputs: separate(inputs, key, inputs)[0], 3.0)
    torch.testing.assert_close(smoothed(x), wanted)
    torch.testing.assert_close(SmoothedAttention(MultiHead(layer), 3.0)(x), Plain(layer, 3.0)(x))


def encoder(depth=2):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, norm_first=False)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).double().eval()


def test_the_fused_layers_of_torch_are_smoothed_and_at_one_left_alone():
    model, x = encoder(), tokens()
    with torch.no_grad():
        fused = model(x)
        assert torch.equal(SmoothedAttention(model, 1.0)(x), fused)
        torch.testing.assert_close(SmoothedAttention(model, 1 + 1e-6)(x), fused, atol=1e-4, rtol=1e-4)
        fast = SmoothedAttention(model, 2.0)(x)
    slow = SmoothedAttention(model, 2.0)(x.clone().requires_grad_(True))
    torch.testing.assert_close(fast, slow)
    assert not torch.allclose(fast, fused, atol=1e-3)
    by_hand = encoder()
    with torch.no_grad():
        for layer in by_hand.layers:
            layer.self_attn.in_proj_weight[:WIDTH] /= 2.0
            layer.self_attn.in_proj_bias[:WIDTH] /= 2.0
        torch.testing.assert_close(fast, by_hand(x))


def test_an_exported_program_is_smoothed_without_its_source():
    model, x = encoder(1), tokens()
    program = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(SmoothedAttention(program, 2.0)(x), SmoothedAttention(model, 2.0)(x))


def test_gradients_go_through_the_smoothed_model():
    layer, x = multi_head(), tokens()
    gradients = []
    for model in (SmoothedAttention(MultiHead(layer), 2.0), Plain(layer, 2.0)):
        leaf = x.clone().requires_grad_(True)
        model(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_high_temperature_attends_everywhere_alike():
    layer, x = multi_head(), tokens()
    maps = attention_maps(SmoothedAttention(MultiHead(layer), 1e6).eval(), x)
    torch.testing.assert_close(maps[0], torch.full((3, 5, 5), 0.2, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("path", PATHS)
def test_maps_are_the_means_of_the_heads(path):
    layer, x = multi_head(), tokens()
    plain = Plain(layer)
    answer = plain(x)
    model = PATHS[path](layer).eval()
    (found,) = attention_maps(model, x)
    torch.testing.assert_close(found, plain.weights.mean(1).detach())
    torch.testing.assert_close(model(x), answer)  # watching changed nothing


def test_a_causal_mask_shows_in_the_map():
    q = tokens()[:, None]
    (found,) = attention_maps(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), q)
    assert float(found.triu(1).abs().max()) == 0
    torch.testing.assert_close(found.sum(-1), torch.ones(3, 5, dtype=torch.float64))


def test_a_rollout_is_the_product_of_its_layers_the_last_on_the_left():
    first, second, x = multi_head(), multi_head(), tokens()
    with torch.no_grad():
        second.in_proj_weight.mul_(0.7)
    plain = [Plain(first), Plain(second)]
    plain[1](plain[0](x))
    eye = torch.eye(5, dtype=torch.float64)
    one, two = (0.5 * eye + 0.5 * layer.weights.mean(1).detach() for layer in plain)
    model = nn.Sequential(MultiHead(first), DotProduct(second)).eval()
    rollout = attention_rollout(model, x)
    torch.testing.assert_close(rollout, two @ one)
    torch.testing.assert_close(rollout.sum(-1), torch.ones(3, 5, dtype=torch.float64))
    torch.testing.assert_close(
        attention_rollout(model, x, residual=0.0), plain[1].weights.mean(1).detach() @ plain[0].weights.mean(1).detach()
    )


def test_attention_on_a_token_as_the_head_reads_it():
    attention = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(0))
    place = torch.tensor([0, 5, 2, 2])
    found = attention_on(attention, place)
    assert found[1] == pytest.approx(float(attention[1, :, 5].mean()))
    assert torch.equal(attention_on(attention, place, read="first"), attention[torch.arange(4), 0, place])


def test_bad_input_is_told():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(40, 2).double())
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="positive"):
            SmoothedAttention(linear, temperature)
    with pytest.raises(UnsupportedError, match="no attention"):
        SmoothedAttention(linear, 2.0)(tokens())
    with pytest.raises(UnsupportedError, match="no attention"):
        attention_rollout(linear, tokens())
    layer = multi_head()
    with pytest.raises(UnsupportedError, match="same tokens"):
        attention_maps(lambda x: layer(x[:, :2], x, x)[0], tokens())
    with pytest.raises(InputError, match="residual"):
        attention_rollout(MultiHead(layer), tokens(), residual=1.0)
    with pytest.raises(InputError, match="one token"):
        attention_on(torch.rand(2, 4, 4), [0, 4])
    with pytest.raises(InputError, match="one token"):
        attention_on(torch.rand(2, 4, 4), [0])


def test_a_smoothed_model_keeps_the_mode_of_the_model():
    layer = multi_head()
    assert not SmoothedAttention(MultiHead(layer).eval(), 2.0).training
    assert SmoothedAttention(MultiHead(layer).train(), 2.0).training
