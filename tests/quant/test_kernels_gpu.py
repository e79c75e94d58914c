"""The FP8 kernels on a GPU against float64, on fresh inputs with a fixed seed: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton")

from model.engine.arithmetic import ExpertProduct
from model.engine.head import HeadWeights, PlainHead
from model.engine.norm import Mixed, Rows, add_norm
from model.engine.routing import Choice, Router, choose, norm_dispatch
from model.engine.self_attention import self_attention
from model.engine.swiglu import swiglu
from quant.kernels.dense import PackedMatrix, fits_dense
from quant.kernels.eight_bit import EightBit, _balanced
from quant.kernels.screened_head import ScreenedHead
from quant.narrow import Narrow
from quant.primitives import E4M3, dequantise, quantise, row_scale, sqnr_db

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

EIGHT = EightBit()


def randn(*shape: int, seed: int, std: float = 1.0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return (torch.randn(*shape, device="cuda", generator=generator) * std).bfloat16()


def wide(rows: Rows, count: int) -> Tensor:
    """The stored rows in float64."""
    assert rows.scale is not None
    return rows.values[:count].double() * rows.scale[:count, None].double()


def as_float64(rows: Rows) -> Tensor:
    """In whichever format they are."""
    return rows.values.double() if rows.scale is None else rows.values.double() * rows.scale[:, None].double()


def routed(first: ExpertProduct, h: Tensor, gamma: Tensor, experts: int, top_k: int) -> tuple[Rows, Choice]:
    """Rows as the product wants them, for a shared expert and those that a random router chooses."""
    weight, bias = randn(experts, h.shape[1], seed=3, std=h.shape[1] ** -0.5), torch.zeros(experts, device="cuda")
    router = Router(weight * gamma, bias, top_k, 1)
    choice = choose(h, 1e-6, router)
    if first.gathers:
        return add_norm(h, None, gamma, 1e-6, eight=True), choice
    return norm_dispatch(h, gamma, 1e-6, choice, eight=True), choice


@pytest.mark.parametrize("d", [256, 1408, 3584])
@pytest.mark.parametrize("narrow", [False, True])
def test_norm_rounds_the_sum_to_8_bit(d: int, narrow: bool) -> None:
    h, experts, gamma = randn(77, d, seed=1), Rows(randn(90, d, seed=2)), randn(d, seed=3)
    if narrow:
        experts = Rows(experts.values.to(E4M3), torch.rand(90, device="cuda"))
    position = torch.randint(0, 90, (77, 3), device="cuda", dtype=torch.int32)
    begin = torch.zeros(1, device="cuda", dtype=torch.int32)
    share = torch.rand(77, 3, device="cuda")
    summed = h.double() + (as_float64(experts)[position.long()] * share[..., None].double()).sum(1)
    expected = functional.rms_norm(summed.bfloat16().double(), (d,), gamma.double(), 1e-6)
    mixed = Mixed(experts, position, begin, share, 0)
    assert sqnr_db(expected, wide(add_norm(h.clone(), mixed, gamma, 1e-6, eight=True), 77)) > 30.0
    assert sqnr_db(expected, add_norm(h, mixed, gamma, 1e-6).values) > 45.0


@pytest.mark.parametrize(
    ("rows", "k", "n"),
    [
        (1, 3584, 3584), (4, 14720, 3584), (28, 1408, 1408), (28, 1408, 4224), (64, 1792, 13568), (5, 128, 16),
        (65, 256, 48), (100, 1408, 1408), (512, 1792, 1792), (512, 1408, 4224), (2048, 3584, 10752), (2048, 3584, 3584),
        (14336, 1408, 1408), (300, 160, 48),
    ],
)  # fmt: skip
def test_row_wise_product(rows: int, k: int, n: int) -> None:
    ones = torch.ones(k, device="cuda", dtype=torch.bfloat16)
    x, weight = add_norm(randn(rows, k, seed=1), None, ones, 1e-6, eight=True), randn(n, k, seed=2, std=k**-0.5)
    stored = EIGHT.matrix(weight)
    assert isinstance(stored, PackedMatrix) is fits_dense(n, k)
    scale = row_scale(weight.float())
    exact = wide(x, rows) @ dequantise(quantise(weight.float(), scale), scale).double().t()
    assert sqnr_db(exact, EIGHT.product(x, stored)) > 40.0
    h = randn(rows, n, seed=3)
    expected = h.double() + exact
    EIGHT.add_product(h, x, stored)
    assert sqnr_db(expected, h) > 40.0


@pytest.mark.parametrize(
    ("tokens", "experts", "d", "inner"),
    [(28, 53, 1408, 1408), (700, 7, 512, 384), (5, 3, 256, 128), (300, 4, 256, 192), (3000, 5, 640, 256)],
)
@pytest.mark.parametrize("narrow", [False, True])
def test_experts_agree_with_float64(tokens: int, experts: int, d: int, inner: int, narrow: bool) -> None:
    up = randn(experts + 1, 2 * inner, d, seed=1, std=d**-0.5)
    down = randn(experts + 1, d, inner, seed=2, std=inner**-0.5)
    first, second = EightBit(narrow=Narrow(results=narrow)).experts(up, down)
    rows, choice = routed(first, randn(tokens, d, seed=4), randn(d, seed=5), experts, 3)
    inner_rows = first.product(rows, choice.tiles)
    results = second.product(inner_rows, choice.tiles)
    got = (as_float64(results)[choice.places] * choice.share[..., None].double()).sum(1)
    exact, source = torch.zeros(tokens, d, dtype=torch.float64, device="cuda"), wide(rows, tokens)
    chosen = choice.tiles.expert[choice.places // 128]
    for expert in range(experts + 1):
        token, slot = (chosen == expert).nonzero(as_tuple=True)
        gate, linear = (source[token] @ up[expert].double().t()).chunk(2, dim=1)
        part = functional.silu(gate) * linear @ down[expert].double().t()
        exact.index_add_(0, token, part * choice.share[token, slot, None].double())
    assert sqnr_db(exact, got) > (24.0 if narrow else 25.0)


@pytest.mark.parametrize("dead", [slice(2, 3), slice(None)])
def test_experts_without_gates_give_zeros_and_nothing_to_the_others(dead: slice) -> None:
    d, inner = 256, 256
    up, down = randn(4, 2 * inner, d, seed=2, std=d**-0.5), randn(4, d, inner, seed=3, std=inner**-0.5)
    up[dead, :inner] = 0.0
    first, second = EIGHT.experts(up, down)
    rows, choice = routed(first, randn(300, d, seed=1), torch.ones(d, device="cuda", dtype=torch.bfloat16), 3, 2)
    out = as_float64(second.product(first.product(rows, choice.tiles), choice.tiles))[choice.places]
    expert = choice.tiles.expert[choice.places // 128]
    gone = torch.zeros(4, dtype=torch.bool, device="cuda")
    gone[dead] = True
    assert not bool(out[gone[expert]].abs().sum())
    assert bool(out.isfinite().all())
    assert bool((out[~gone[expert]].abs().sum(-1) > 0.0).all())


def test_a_matrix_of_zeros_gives_zeros_in_8_bit() -> None:
    normed = add_norm(
        randn(100, 256, seed=1), None, torch.ones(256, device="cuda", dtype=torch.bfloat16), 1e-6, eight=True
    )
    stored = EIGHT.matrix(torch.zeros(768, 256, device="cuda", dtype=torch.bfloat16))
    assert isinstance(stored, PackedMatrix)
    assert not bool(as_float64(stored.narrow_product(normed)).abs().sum())


def test_experts_make_zeros_of_zeros() -> None:
    d, inner = 256, 256
    h = torch.zeros(40, d, device="cuda", dtype=torch.bfloat16)
    first, second = EIGHT.experts(randn(4, 2 * inner, d, seed=2), randn(4, d, inner, seed=3))
    rows, choice = routed(first, h, torch.ones_like(h[0]), 3, 2)
    out = second.product(first.product(rows, choice.tiles), choice.tiles)
    assert not bool(out.values[choice.places].float().abs().sum())


@pytest.mark.parametrize(("rows", "d", "inner"), [(2048, 1408, 5632), (130, 256, 384), (28, 1792, 6784)])
def test_a_dense_feed_forward_agrees_with_float64(rows: int, d: int, inner: int) -> None:
    up, down = randn(2 * inner, d, seed=1, std=d**-0.5), randn(d, inner, seed=2, std=inner**-0.5)
    h, ones = randn(rows, d, seed=3), torch.ones(d, device="cuda", dtype=torch.bfloat16)
    fused = EIGHT.gated(up, down)
    assert fused is not None
    first, second = fused
    x = add_norm(h, None, ones, 1e-6, eight=True)
    gate, linear = (wide(x, rows) @ up.double().t()).chunk(2, dim=1)
    exact = (functional.silu(gate) * linear) @ down.double().t()
    assert sqnr_db(exact, EIGHT.product(first.of_all(x), second)) > 22.0


def test_of_the_codes_of_a_stored_down_matrix_only_the_smallest_are_rounded_again() -> None:
    up, down = randn(2 * 384, 256, seed=1).float(), randn(256, 384, seed=2).float()
    stored = dequantise(quantise(down, row_scale(down)), row_scale(down))
    _, _, reach, codes, scale = _balanced(up[None], stored[None])
    again = codes.float() * scale[..., None] / reach[:, None, :]
    half_a_step = 2.0**-10 * scale[..., None] / reach[:, None, :]  # of the smallest codes
    moved = (again - stored).abs() - 1e-6 * stored.abs()
    assert bool((moved <= half_a_step).all())
    assert float((moved > 0).float().mean()) < 0.25
    assert sqnr_db(stored, again[0]) > 40.0  # E4M3 itself leaves 31.6


@pytest.mark.parametrize("inner", [384, 2048, 14336])
def test_swiglu_rounds_each_row(inner: int) -> None:
    gate_up = randn(70, 2 * inner, seed=1, std=2.0)
    gate, linear = gate_up.double().chunk(2, dim=1)
    exact = functional.silu(gate) * linear
    assert sqnr_db(exact, wide(swiglu(gate_up, eight=True), 70)) > 30.0
    assert sqnr_db(exact, swiglu(gate_up).values) > 45.0


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("beams", "length", "own"),
    [(512, 3072, False), (1, 3072, False), (1, 9000, False), (1, 300, True), (200, 700, True), (64, 46, True)],
)
def test_cross_attention_agrees_with_float64(beams: int, length: int, own: bool, head_dim: int) -> None:
    batch, heads, groups = 2, 4, 2
    key = functional.rms_norm(randn(batch, groups, length, head_dim, seed=1), (head_dim,))
    value = functional.rms_norm(randn(batch, groups, length, head_dim, seed=2), (head_dim,)) if own else key
    q = randn(batch * beams, heads * head_dim, seed=3)
    lengths = torch.tensor([length, length - 45], dtype=torch.int32, device="cuda")
    mask = (torch.arange(length, device="cuda")[None] < lengths[:, None])[:, None, None]
    exact = functional.scaled_dot_product_attention(
        q.double().view(batch, beams, heads, head_dim).transpose(1, 2),
        key.double().repeat_interleave(heads // groups, 1),
        value.double().repeat_interleave(heads // groups, 1),
        attn_mask=mask,
    )
    exact = exact.transpose(1, 2).reshape(batch * beams, -1)
    got = EIGHT.context(key, value, lengths).attend(Rows(q), beams, heads)
    assert sqnr_db(exact, wide(got, batch * beams)) > 20.0


@pytest.mark.parametrize(("strength", "least_db"), [(0.0, 25.0), (4.0, 18.0), (8.0, 15.0)])
def test_flat_and_sharp_attention_agree_with_float64(strength: float, least_db: float) -> None:
    batch, heads, beams, length = 1, 2, 200, 1000
    key, value = (randn(batch, heads, length, 128, seed=seed) for seed in (1, 2))
    q = randn(batch * beams, heads * 128, seed=3) * strength
    lengths = torch.tensor([length - 45], dtype=torch.int32, device="cuda")
    mask = (torch.arange(length, device="cuda") < lengths)[None, None, None]
    queries = q.double().view(batch, beams, heads, 128).transpose(1, 2)
    exact = functional.scaled_dot_product_attention(queries, key.double(), value.double(), attn_mask=mask)
    got = EIGHT.context(key, value, lengths).attend(Rows(q), beams, heads)
    assert sqnr_db(exact.transpose(1, 2).reshape(batch * beams, -1), wide(got, batch * beams)) > least_db


@pytest.mark.parametrize("strength", [1.0, 10.0])
def test_a_screened_head_finds_the_beams_of_exact_logits(strength: float) -> None:
    batch, beams, codes, d, k = 8, 512, 8192, 1408, 512
    h, matrix = randn(batch * beams, d, seed=1), randn(codes, d, seed=2, std=strength * d**-0.5)
    weights = HeadWeights(1 + randn(d, seed=3, std=0.1), matrix, 1e-6)
    scores = randn(batch, beams, seed=4).float()
    head = EIGHT.head(weights)
    assert isinstance(head, ScreenedHead)
    assert head.screens(scores, k)
    x = functional.rms_norm(h.double(), (d,), weights.norm.double(), 1e-6)
    exact = (scores.double().flatten()[:, None] + torch.log_softmax(x @ matrix.double().t(), -1)).view(batch, -1)
    best = head.best(h, None, scores, k, None)
    usual = PlainHead(weights).best(h, None, scores, k, None)
    chosen, plain = (one.beams * codes + one.codes for one in (best, usual))
    top = exact.topk(k).indices
    found, nearly = (torch.stack([torch.isin(*pair) for pair in zip(one, top, strict=True)]) for one in (chosen, plain))
    assert found.double().mean() > max(0.97, nearly.double().mean() - 0.01)
    errors = [rms(one.scores.double() - exact.gather(1, at)) for one, at in ((best, chosen), (usual, plain))]
    assert errors[0] < 1.25 * errors[1]
    assert bool((best.scores.diff() <= 0).all())


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_a_screened_head_takes_what_may_be_taken_and_fills_up_with_lost_ones() -> None:
    batch, beams, codes, d, k = 8, 512, 8192, 256, 512
    weights = HeadWeights(torch.ones(d, device="cuda").bfloat16(), randn(codes, d, seed=2, std=d**-0.5), 1e-6)
    legal = torch.zeros(batch * beams, codes // 32, dtype=torch.int32, device="cuda")
    legal[::beams, 3] = 5  # two codes of each request's first beam
    h, scores = randn(batch * beams, d, seed=1), torch.zeros(batch, beams, device="cuda")
    best = EIGHT.head(weights).best(h, None, scores, k, legal)
    assert bool((best.scores[:, :2] > -1e30).all())
    assert bool((best.scores[:, 2:] == float("-inf")).all())
    assert best.codes[:, :2].sort().values.tolist() == [[96, 98]] * batch
    assert not bool(best.beams[:, :2].any())


def test_self_attention_rounds_what_16_bit_gives() -> None:
    batch, beams, heads, d = 3, 16, 11, 1408
    first, second, new = (
        Rows(randn(rows, 3 * d, seed=seed)) for seed, rows in enumerate((batch, batch * beams, batch * beams))
    )
    parent = torch.randint(0, beams, (batch * beams,), device="cuda")
    plain = self_attention(new, (first, second), (parent,), beams, heads).values
    eight = self_attention(new, (first, second), (parent,), beams, heads, eight=True)
    assert sqnr_db(plain, wide(eight, batch * beams)) > 30.0


@pytest.mark.parametrize("narrow", [(False, True, True), (True, True, True), (False, False, True)])
def test_self_attention_reads_either_format(narrow: tuple[bool, bool, bool]) -> None:
    batch, beams, heads, d = 3, 16, 11, 1408
    kept: list[Rows] = []
    for seed, (rows, eight) in enumerate(zip((batch, batch * beams, batch * beams), narrow, strict=True)):
        values = randn(rows, 3 * d, seed=seed)
        kept.append(Rows(values.to(E4M3), torch.rand(rows, device="cuda") + 0.5) if eight else Rows(values))
    parent = torch.randint(0, beams, (batch * beams,), device="cuda")
    first, second, new = kept
    for past, parents in (((first,), ()), ((first, second), (parent,))):
        as_16 = tuple(Rows(as_float64(one).bfloat16()) for one in (*past, new))
        plain = self_attention(as_16[-1], as_16[:-1], parents, beams, heads).values
        assert sqnr_db(plain, self_attention(new, past, parents, beams, heads).values) > 40.0


@pytest.mark.parametrize(
    ("rows", "k", "n"), [(14336, 1408, 4224), (100, 1792, 5376), (700, 3584, 10752), (28, 256, 768)]
)
def test_products_in_8_bit_are_rounded_and_never_saturate(rows: int, k: int, n: int) -> None:
    weight = randn(n, k, seed=2, std=k**-0.5)
    weight[0] *= 30.0
    x = randn(rows, k, seed=1)
    x[0] = weight[0]  # as large as a result can get
    normed = add_norm(x, None, torch.ones(k, device="cuda", dtype=torch.bfloat16), 1e-6, eight=True)
    stored = EIGHT.matrix(weight)
    assert isinstance(stored, PackedMatrix)
    got = stored.narrow_product(normed)
    assert (got.scale is None) == (rows <= 64)
    plain = EIGHT.product(normed, stored)
    assert sqnr_db(plain[0, 0], as_float64(got)[0, 0]) > 24.0  # one number, rounded by up to a sixteenth
    assert sqnr_db(plain, as_float64(got)) > 29.0
