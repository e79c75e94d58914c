"""The whole model against itself written with Python's own numbers and loops, equation by equation.

Nothing here is shared with the model but its weights: no tensors, no broadcasting, no fused kernels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.catalogue import Catalogue
from model.config import OneRecConfig
from model.onerec import OneRecV2
from model.recommender import Recommender
from model.semantic_ids import Tokenizer
from model.signals import UserSignals, profile_buckets

pytestmark = pytest.mark.usefixtures("one_thread")

Vector = list[float]
Matrix = list[Vector]

EXPERTS = {"n_experts": 5, "n_shared_experts": 2, "experts_per_token": 2, "expert_dim": 6, "dense_layers": 1}


def times(matrix: Matrix, x: Vector) -> Vector:
    return [sum(w * v for w, v in zip(row, x, strict=True)) for row in matrix]


def plus(a: Vector, b: Vector) -> Vector:
    return [x + y for x, y in zip(a, b, strict=True)]


def rms_norm(x: Vector, weight: Vector, eps: float) -> Vector:
    scale = 1 / math.sqrt(sum(v * v for v in x) / len(x) + eps)
    return [v * scale * w for v, w in zip(x, weight, strict=True)]


def softmax(x: Vector) -> Vector:
    top = max(x)
    parts = [math.exp(v - top) for v in x]
    return [part / sum(parts) for part in parts]


def attend(query: Vector, keys: Matrix, values: Matrix) -> Vector:
    weights = softmax([sum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(len(query)) for key in keys])
    return [sum(w * value[i] for w, value in zip(weights, values, strict=True)) for i in range(len(values[0]))]


def swiglu(x: Vector, gate_up: Matrix, down: Matrix) -> Vector:
    inner = len(gate_up) // 2
    gate, up = times(gate_up[:inner], x), times(gate_up[inner:], x)
    return times(down, [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)])


class LoopModel:
    """OneRec-V2 for one user, from a state dict."""

    def __init__(self, config: OneRecConfig, weights: dict[str, Tensor]) -> None:
        self.config, self.w = config, {name: value.double().tolist() for name, value in weights.items()}

    def context(
        self, history: list[list[int]], liked: list[list[int]] | None = None, buckets: list[int] | None = None
    ) -> tuple[list[list[Matrix]], list[list[Matrix]]]:
        """keys[set][group] and values[set][group]: one vector per token, the profile token first."""
        c, w = self.config, self.w
        profile = w["context.profile"]
        for bucket in buckets or []:
            profile = plus(profile, w["context.features.weight"][bucket])
        tokens = [profile]
        for place, codes in enumerate(history):
            token = plus(self._encoded(codes), w["context.recency.weight"][place])
            tokens.append(plus(token, w["context.short_term"]) if place < c.short_term else token)
        for place, codes in enumerate(liked or []):
            token = plus(self._encoded(codes), w["context.positive_recency.weight"][place])
            tokens.append(plus(token, w["context.positive"]))
        keys: list[list[Matrix]] = []
        values: list[list[Matrix]] = []
        for j in range(c.kv_sets):
            keys.append(self._set(tokens, j * c.kv_split))
            values.append(self._set(tokens, j * c.kv_split + 1) if c.kv_split == 2 else keys[-1])
        return keys, values

    def _encoded(self, codes: list[int]) -> Vector:
        c, w = self.config, self.w
        x: Vector = []
        for level in range(c.levels):
            x += w[f"context.embed.{level}.weight"][codes[level]]
        if c.encoder_dim:
            x = plus(times(w["context.hidden.weight"], x), w["context.hidden.bias"])
            x = [v if v > 0 else 0.01 * v for v in x]
        return times(w["context.project.weight"], x)

    def _set(self, tokens: Matrix, chunk: int) -> list[Matrix]:
        """C_chunk, normed head by head: [group][token]."""
        c = self.config
        weight, dh = self.w[f"context.norms.{chunk}.weight"], c.d_model // c.n_heads
        begin = chunk * c.kv_groups * dh
        return [
            [rms_norm(x[begin + g * dh : begin + (g + 1) * dh], weight, c.norm_eps) for x in tokens]
            for g in range(c.kv_groups)
        ]

    def logits(
        self,
        history: list[list[int]],
        target: list[int],
        liked: list[list[int]] | None = None,
        buckets: list[int] | None = None,
    ) -> Matrix:
        """One row per level, given the levels before it."""
        c, w = self.config, self.w
        keys, values = self.context(history, liked, buckets) if liked or buckets else self.context(history)
        h = [w["bos"]] + [w[f"token_embed.{level}.weight"][target[level]] for level in range(c.levels - 1)]
        for layer in range(c.n_layers):
            j = math.floor(layer * c.kv_sets / c.n_layers)
            h = [plus(x, self._cross(layer, x, keys[j], values[j])) for x in h]
            h = [plus(x, y) for x, y in zip(h, self._self(layer, h), strict=True)]
            h = [plus(x, self._ffn(layer, self._norm(layer, "ffn", x))) for x in h]
        out = []
        for level, x in enumerate(h):
            out.append(times(w[f"heads.{level}.weight"], rms_norm(x, w[f"head_norms.{level}.weight"], c.norm_eps)))
        return out

    def _norm(self, layer: int, name: str, x: Vector) -> Vector:
        return rms_norm(x, self.w[f"decoder.blocks.{layer}.norm_{name}.weight"], self.config.norm_eps)

    def _cross(self, layer: int, x: Vector, keys: list[Matrix], values: list[Matrix]) -> Vector:
        c, block = self.config, f"decoder.blocks.{layer}.cross"
        query, dh = times(self.w[f"{block}.wq.weight"], self._norm(layer, "cross", x)), c.d_model // c.n_heads
        mixed: Vector = []
        for head in range(c.n_heads):
            group = head // (c.n_heads // c.kv_groups)
            mixed += attend(query[head * dh : (head + 1) * dh], keys[group], values[group])
        return times(self.w[f"{block}.wo.weight"], mixed)

    def _self(self, layer: int, h: Matrix) -> Matrix:
        c, block = self.config, f"decoder.blocks.{layer}.self_attn"
        d, dh = c.d_model, c.d_model // c.n_heads
        qkv = [times(self.w[f"{block}.wqkv.weight"], self._norm(layer, "self", x)) for x in h]
        out = []
        for t in range(len(h)):
            mixed: Vector = []
            for head in range(c.n_heads):
                part = slice(head * dh, (head + 1) * dh)
                keys = [qkv[s][d : 2 * d][part] for s in range(t + 1)]
                values = [qkv[s][2 * d :][part] for s in range(t + 1)]
                mixed += attend(qkv[t][:d][part], keys, values)
            out.append(times(self.w[f"{block}.wo.weight"], mixed))
        return out

    def _ffn(self, layer: int, x: Vector) -> Vector:
        c, w, block = self.config, self.w, f"decoder.blocks.{layer}.ffn"
        if not c.n_experts or layer < c.dense_layers:
            return swiglu(x, w[f"{block}.gate_up.weight"], w[f"{block}.down.weight"])
        affinity = [1 / (1 + math.exp(-v)) for v in times(w[f"{block}.router.weight"], x)]
        order = sorted(range(c.n_experts), key=lambda e: affinity[e] + w[f"{block}.bias"][e], reverse=True)
        chosen = order[: c.experts_per_token]
        out = [0.0] * len(x)
        if c.n_shared_experts:
            out = swiglu(x, w[f"{block}.shared.gate_up.weight"], w[f"{block}.shared.down.weight"])
        for e in chosen:
            share = affinity[e] / sum(affinity[i] for i in chosen)
            part = swiglu(x, w[f"{block}.gate_up"][e], w[f"{block}.down"][e])
            out = plus(out, [share * v for v in part])
        return out


VARIANTS = [
    pytest.param({"kv_sets": 1, "kv_split": 1, "kv_groups": 4}, id="the paper's default"),
    pytest.param({"kv_sets": 1, "kv_split": 2}, id="values of their own"),
    pytest.param({"kv_sets": 3, "kv_split": 1, "kv_groups": 1}, id="a set per block, one group"),
    pytest.param({"n_layers": 5, "kv_sets": 3, "kv_split": 2}, id="sets shared unevenly"),
    pytest.param({"encoder_dim": 0}, id="linear item encoder"),
    pytest.param({"levels": 4}, id="four levels"),
    pytest.param(EXPERTS, id="experts after a dense block"),
    pytest.param(EXPERTS | {"dense_layers": 0, "n_shared_experts": 0}, id="routed experts only"),
]


def _built(
    change: dict[str, int], make_model: Callable[..., OneRecV2], toy_config: OneRecConfig
) -> tuple[OneRecV2, LoopModel]:
    model = make_model(dataclasses.replace(toy_config, **change)).double()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("ffn.bias"):
                buffer.add_(torch.randn(buffer.shape, dtype=torch.float64) * 0.3)
    return model, LoopModel(model.config, dict(model.state_dict()))


@pytest.mark.parametrize("change", VARIANTS)
@torch.no_grad()
def test_logits_equal_the_stated_equations_by_loops(
    change: dict[str, int], make_model: Callable[..., OneRecV2], toy_config: OneRecConfig
) -> None:
    model, loops = _built(change, make_model, toy_config)
    levels = model.config.levels
    history, target = torch.randint(0, 5, (3, 6, levels)), torch.randint(0, 5, (3, levels))
    valid = torch.arange(6) < torch.tensor([[6], [2], [0]])
    got = model(model.context(history, valid), target)
    for user in range(3):
        known = history[user][valid[user]].tolist()
        for level, expected in enumerate(loops.logits(known, target[user].tolist())):
            torch.testing.assert_close(
                got[level][user], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-5
            )


PATHWAYS = [
    pytest.param({"short_term": 2}, id="short-term mark"),
    pytest.param({"short_term": 6}, id="short-term only"),
    pytest.param({"positive_len": 3}, id="positive feedback"),
    pytest.param({"profile_features": 7}, id="profile"),
    pytest.param({"short_term": 2, "positive_len": 3, "profile_features": 7}, id="all"),
    pytest.param({"short_term": 2, "positive_len": 3, "profile_features": 7, "encoder_dim": 0}, id="all, linear"),
]


@pytest.mark.parametrize("change", PATHWAYS)
@torch.no_grad()
def test_logits_of_every_pathway_equal_the_stated_equations_by_loops(
    change: dict[str, int], make_model: Callable[..., OneRecV2], toy_config: OneRecConfig
) -> None:
    """From what is known of a user, by way of the recommender, whose batch has contexts of several lengths."""
    model, loops = _built(change, make_model, toy_config)
    c, codes = model.config, torch.cartesian_prod(*[torch.arange(5)] * 3)[torch.randperm(125)[:20]]
    names = tuple(f"i{item}" for item in range(20))
    recommender = Recommender(model, Catalogue(names, names, ((),) * 20), Tokenizer(codes, torch.zeros(3, 5, 2)))
    users = [
        UserSignals([3, 1, 4, 1, 5, 9, 2, 6], [4, 1, 2, 6], {"age": "25-34", "gender": "F"}),
        UserSignals([7], [8, 9], {}),
        UserSignals([], [], {"age": "56+"}),
    ]
    target = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1]])
    got = model(recommender.context(users), target)
    for row, user in enumerate(users):
        history = [codes[item].tolist() for item in list(user.history)[::-1][: c.context_len]]
        liked = [codes[item].tolist() for item in list(user.liked)[::-1][: c.positive_len]]
        buckets = profile_buckets(user.profile, c.profile_features)
        for level, expected in enumerate(loops.logits(history, target[row].tolist(), liked, buckets)):
            torch.testing.assert_close(
                got[level][row], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-5
            )


@torch.no_grad()
def test_loss_equals_the_mean_over_three_tokens_by_loops(
    make_model: Callable[..., OneRecV2], toy_config: OneRecConfig
) -> None:
    model, loops = _built({}, make_model, toy_config)
    history, target = torch.randint(0, 5, (4, 3, 3)), torch.randint(0, 5, (4, 3))
    total = 0.0
    for user in range(4):
        rows = loops.logits(history[user].tolist(), target[user].tolist())
        total -= sum(math.log(softmax(row)[int(target[user, level])]) for level, row in enumerate(rows)) / 3
    got = model.loss(model.context(history, torch.ones(4, 3, dtype=torch.bool)), target)
    assert got.item() == pytest.approx(total / 4, rel=1e-5)


@torch.no_grad()
def test_beam_by_beam_decoding_equals_the_stated_equations_by_loops(
    make_model: Callable[..., OneRecV2], toy_config: OneRecConfig
) -> None:
    """The serving path: BOS once, then all beams of a request at once, from their caches."""
    model, loops = _built(EXPERTS, make_model, toy_config)
    history, beams = torch.randint(0, 5, (2, 3, 3)), torch.randint(0, 5, (2, 4, 3))
    context = model.context(history, torch.ones(2, 3, dtype=torch.bool))
    _, caches = model.start(context)
    caches = [(key.repeat_interleave(4, 0), value.repeat_interleave(4, 0)) for key, value in caches]
    for level in (1, 2):
        hidden, caches = model.advance(beams[:, :, level - 1], level - 1, context, caches)
        for request in range(2):
            for beam in range(4):
                expected = loops.logits(history[request].tolist(), beams[request, beam].tolist())[level]
                got = model.logits(hidden[request, beam], level)
                torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("planted", ["set index", "value is not key", "bias in weight", "causal"])
@torch.no_grad()
def test_loops_with_a_planted_error_are_told_apart(
    planted: str, make_model: Callable[..., OneRecV2], toy_config: OneRecConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail: each plausible misreading of the paper is seen by it."""
    model, loops = _built(EXPERTS | {"kv_sets": 2, "kv_split": 1}, make_model, toy_config)
    history, target = torch.randint(0, 5, (1, 4, 3)), torch.randint(0, 5, (1, 3))
    got = model(model.context(history, torch.ones(1, 4, dtype=torch.bool)), target)
    if planted == "set index":
        monkeypatch.setattr(math, "floor", lambda x: 1 - int(x))
    elif planted == "value is not key":
        keys_of = loops.context
        loops.context = lambda h: (keys_of(h)[0], keys_of(h)[1][::-1])  # type: ignore[method-assign]
    elif planted == "bias in weight":
        loops.w["decoder.blocks.2.ffn.bias"] = [-v for v in loops.w["decoder.blocks.2.ffn.bias"]]
    else:
        loops._self = lambda layer, h: LoopModel._self(loops, layer, h[::-1])[::-1]  # type: ignore[method-assign]
    expected = loops.logits(history[0].tolist(), target[0].tolist())
    apart = [float((got[i][0] - torch.tensor(row, dtype=torch.float64)).abs().max()) for i, row in enumerate(expected)]
    assert max(apart) > 1e-3
