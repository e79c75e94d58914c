"""The engine on a GPU against the plain model: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton")

from model.beam import beam_search
from model.config import OneRecConfig
from model.context import ContextKV
from model.engine.arithmetic import SixteenBit
from model.engine.decode import Decoder
from model.engine.norm import Rows
from model.engine.routing import capacity, dispatch
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


@pytest.mark.parametrize("tokens", [1, 28, 14336])
def test_every_row_is_copied_to_its_experts_tiles(tokens: int) -> None:
    logits = torch.randn(tokens, 53, device="cuda")
    bias = torch.randn(53, device="cuda") * 0.1
    room = capacity(tokens, 1, 53, 3)
    values = torch.randint(1, 100, (room, 64), dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
    rows = Rows(values, torch.rand(room, device="cuda"), torch.rand(room, device="cuda"))
    first = [part[:tokens].clone() for part in (values.view(torch.uint8), rows.scale, rows.square)]
    placed, way = dispatch(rows, logits, bias, 3, 1)
    expected = (logits.sigmoid() + bias).topk(3).indices + 1
    found = way.tiles.expert[(way.position[:, 1:] // 128).long()]
    assert torch.equal(found.long(), expected)
    assert way.position.unique().numel() == tokens * 4
    assert int(way.position.max()) < int(way.tiles.used) * 128
    for slot in range(4):
        place = way.position[:, slot].long()
        for part, before in zip((placed.values.view(torch.uint8), placed.scale, placed.square), first, strict=True):
            assert torch.equal(part[place], before)


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
