"""The engine on a GPU against the plain model: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton")

from model.beam import beam_search
from model.config import OneRecConfig
from model.context import ContextKV
from model.engine.arithmetic import SixteenBit
from model.engine.decode import Decoder
from model.engine.norm import Rows, add_norm
from model.engine.routing import Choice, Router, choose, norm_dispatch
from model.engine.select import select_beams
from model.engine.weights import weights_of
from model.onerec import OneRecV2
from model.trie import ItemTrie

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize(("batch", "beams", "codes"), [(1, 1, 8192), (3, 512, 8192), (28, 512, 8192), (2, 8, 1024)])
@pytest.mark.parametrize("ties", [False, True])
def test_selection_is_exact_and_prefers_the_lowest_index(batch: int, beams: int, codes: int, ties: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(batch)
    logits = torch.randn(batch * beams, codes, device="cuda", generator=generator)
    if ties:
        logits = (logits[:1] * 2).round().expand(batch * beams, -1).contiguous() / 2
    scores = torch.zeros(batch, beams, device="cuda") if ties else torch.randn(batch, beams, device="cuda")
    k = 512 if beams * codes >= 1 << 20 else 64
    best = select_beams(logits, scores, k)
    for request in range(batch):
        rows = logits[request * beams : (request + 1) * beams].double()
        exact = (scores[request].double()[:, None] + torch.log_softmax(rows, -1)).flatten()
        chosen = best.beams[request] * codes + best.codes[request]
        torch.testing.assert_close(best.scores[request].double(), exact[chosen], rtol=1e-5, atol=1e-5)
        floor = exact.topk(k).values[-1]
        assert bool((exact[chosen] >= floor - 1e-5).all())
        assert chosen.unique().numel() == k
        if ties:
            assert torch.equal(chosen, exact.float().sort(descending=True, stable=True).indices[:k])


@pytest.mark.parametrize(
    ("tokens", "d", "experts", "top_k", "shared"),
    [(1, 1408, 53, 3, 1), (28, 1408, 53, 3, 1), (700, 144, 7, 2, 0), (130, 256, 200, 1, 2), (14336, 1408, 53, 3, 1)],
)
@pytest.mark.parametrize("eight", [False, True])
def test_every_row_comes_to_its_experts_tiles(
    tokens: int, d: int, experts: int, top_k: int, shared: int, eight: bool
) -> None:
    h = torch.randn(tokens, d, device="cuda").bfloat16()
    gamma, router = (torch.randn(n, d, device="cuda").mul(d**-0.5).bfloat16() for n in (1, experts))
    gamma, bias = 1 + gamma[0], torch.randn(experts, device="cuda") * 0.1
    choice = choose(h, 1e-6, Router(router * gamma, bias, top_k, shared))
    agree_with_float64(choice, h, gamma, router, bias)
    normed, expected = norm_dispatch(h, gamma, 1e-6, choice, eight=eight), add_norm(h, None, gamma, 1e-6, eight=eight)
    for place in choice.places.unbind(1):
        scale = None if normed.scale is None else normed.scale[place]
        nearly_equal(Rows(normed.values[place], scale), expected)


def agree_with_float64(choice: Choice, h: Tensor, gamma: Tensor, router: Tensor, bias: Tensor) -> None:
    """The best experts are chosen, with their shares; each token has a row of its own in a tile of each of them."""
    (tokens, d), (_, top_k), shared, tiles = h.shape, choice.chosen.shape, choice.shared, choice.tiles
    tile = choice.places // 128
    slots = tiles.expert[tile].long()
    assert torch.equal(slots[:, :shared], torch.arange(shared, device="cuda").expand(tokens, -1))
    affinity = (functional.rms_norm(h.double(), (d,), gamma.double(), 1e-6) @ router.double().t()).sigmoid()
    rank, chosen = affinity + bias, slots[:, shared:] - shared
    assert bool((rank.gather(1, chosen) >= rank.topk(top_k).values - 0.005).all())
    share = affinity.gather(1, chosen)
    torch.testing.assert_close(choice.share[:, shared:].double(), share / share.sum(1, True), rtol=0.01, atol=0.01)
    assert bool((choice.share[:, :shared] == 1).all())
    used = int(tiles.used)
    assert choice.places.unique().numel() == choice.places.numel()
    assert torch.equal(tiles.filled[:used].long(), tile.flatten().bincount(minlength=used))
    assert bool((choice.places % 128 < tiles.filled[tile]).all())
    source, within = tiles.source[tile].long(), choice.places % 128
    named = torch.where(source < 0, -1 - source + within, tiles.token[(source + within).clamp_min(0)])
    assert torch.equal(named, torch.arange(tokens, device="cuda")[:, None].expand_as(named))


def nearly_equal(rows: Rows, expected: Rows) -> None:
    """Rows are summed in another order: now and then a number is rounded the other way."""
    values, reference = rows.values.float(), expected.values.float()
    eight = rows.scale is not None
    if rows.scale is not None and expected.scale is not None:
        values, reference = values * rows.scale[:, None], reference * expected.scale[:, None]
        usual = values.square().mean(1).sqrt() / rows.scale
        torch.testing.assert_close(usual, torch.full_like(usual, 0.75), rtol=2**-6, atol=0.0)
    torch.testing.assert_close(values, reference, rtol=0.15 if eight else 0.01, atol=1e-3)
    assert float((values != reference).float().mean()) < 0.01 or eight


def test_of_equal_experts_the_first_are_chosen() -> None:
    h = torch.randn(70, 256, device="cuda").bfloat16()
    router = torch.randn(1, 256, device="cuda").bfloat16().expand(53, -1).contiguous()
    choice = choose(h, 1e-6, Router(router, torch.zeros(53, device="cuda"), 3, 1))
    chosen = choice.chosen % choice.begin.shape[0]
    assert torch.equal(chosen, torch.arange(3, device="cuda", dtype=torch.int32).expand(70, -1))


def test_the_engine_finds_the_beams_of_the_plain_model() -> None:
    torch.manual_seed(0)
    config = OneRecConfig(
        d_model=256, n_layers=3, n_heads=4, kv_groups=2, context_len=300, ffn_dim=512, sid_embed_dim=16,
        codebook_size=128, kv_split=2, n_experts=5, n_shared_experts=1, experts_per_token=2, expert_dim=192,
        dense_layers=1,
    )  # fmt: skip
    model = OneRecV2(config).eval().cuda()
    shape = (2, config.kv_groups, 301, config.head_dim)
    key, value = (functional.rms_norm(torch.randn(shape, device="cuda"), (64,)) for _ in range(2))
    lengths = torch.tensor([301, 123], dtype=torch.int32, device="cuda")
    mask = (torch.arange(301, device="cuda")[None] < lengths[:, None])[:, None, None]
    items = torch.cartesian_prod(*[torch.arange(128)] * 3)
    with torch.inference_mode():
        expected = beam_search(model, ContextKV((key,), (value,), mask), ItemTrie.build(items, "cuda"), 32)
        half = model.bfloat16()
        decoder = Decoder(weights_of(half), SixteenBit())
        found = decoder.decode((decoder.arithmetic.context(key.bfloat16(), value.bfloat16(), lengths),), 32)
    place = (found.codes * torch.tensor([128 * 128, 128, 1], device="cuda")).sum(-1)
    shared = torch.stack([torch.isin(a, b).float().mean() for a, b in zip(place, expected.items, strict=True)])
    assert float(shared.mean()) > 0.8
    torch.testing.assert_close(found.scores, expected.scores, rtol=0.02, atol=0.05)
