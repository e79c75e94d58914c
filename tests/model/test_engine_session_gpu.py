"""The engine-backed recommender against the plain one: `pytest -m gpu`.

On a machine without a GPU the same tests run, slowly and without graphs, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from model.catalogue import Catalogue
from model.config import OneRecConfig
from model.engine.arithmetic import SixteenBit
from model.engine.buckets import beam_width
from model.engine.context import History
from model.engine.decode import Decoder
from model.engine.prefixes import Prefixes
from model.engine.recommender import EngineRecommender
from model.engine.session import Session
from model.engine.weights import weights_of
from model.errors import ModelError
from model.onerec import OneRecV2
from model.recommender import Recommender
from model.semantic_ids import Tokenizer
from tests.device import DEVICE, GPU, GPU_OR_INTERPRETER

pytestmark = GPU_OR_INTERPRETER

DENSE = OneRecConfig(
    d_model=128, n_layers=2, n_heads=4, kv_groups=4, context_len=100 if GPU else 6, ffn_dim=192, sid_embed_dim=16,
    codebook_size=64, encoder_dim=48,
)  # fmt: skip
CONFIGS = {
    "dense": DENSE,
    "experts": replace(
        DENSE, n_layers=3, kv_groups=2, kv_sets=2, kv_split=2, n_experts=5, n_shared_experts=1, experts_per_token=2,
        expert_dim=96, dense_layers=1,
    ),
    "routed-only": replace(DENSE, kv_groups=1, n_experts=4, experts_per_token=1, expert_dim=64),
    "two levels": replace(DENSE, levels=2, encoder_dim=0),
}  # fmt: skip
ITEMS = 900


def plain_recommender(config: OneRecConfig) -> Recommender:
    torch.manual_seed(0)
    model = OneRecV2(config).eval().requires_grad_(False)
    for head in model.heads:
        head.weight.mul_(12.0)  # type: ignore[operator]  # peaked answers: a random head ranks by rounding noise
    size = config.codebook_size
    number = torch.randperm(size**config.levels, generator=torch.Generator().manual_seed(1))[:ITEMS]
    codes = torch.stack([number // size**power % size for power in range(config.levels)], dim=1)
    catalogue = Catalogue(tuple(f"i{item}" for item in range(ITEMS)), ("",) * ITEMS, ((),) * ITEMS)
    tokenizer = Tokenizer(codes, torch.zeros(config.levels, size, 4))
    return Recommender(model.to(DEVICE, torch.bfloat16), catalogue, tokenizer)


def on_engine(plain: Recommender, *, table: bool = True) -> EngineRecommender:
    history = History(plain.model.context, plain.codes, plain._encoded if table else None)
    with torch.inference_mode():
        decoder = Decoder(weights_of(plain.model), SixteenBit())
        session = Session(decoder, history, Prefixes.of(plain.trie, plain.config.codebook_size))
    return EngineRecommender(plain, session)


def histories(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (count,), generator=generator).tolist()
    lengths[0] = longest
    return [torch.randint(0, ITEMS, (length,), generator=generator).tolist() for length in lengths]


def shared(found: torch.Tensor, expected: torch.Tensor) -> float:
    parts = [torch.isin(a, b).float().mean() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(parts).mean())


@pytest.mark.parametrize("name", CONFIGS if GPU else ["experts", "two levels"])
def test_the_engine_ranks_as_the_plain_model_does(name: str) -> None:
    asked = [histories(3, 8, 1)] if not GPU else [histories(n, m, n) for n, m in ((1, 5), (3, 90), (9, 300), (28, 700))]
    width = 32 if GPU else 8
    expected = [plain_recommender(CONFIGS[name]).rank(batch, width) for batch in asked]
    engine = on_engine(plain_recommender(CONFIGS[name]), table=name != "two levels")
    for _ in range(2):  # the second time every graph is a replay, with the other graphs' inputs in between
        for batch, (items, scores) in zip(asked, expected, strict=True):
            found, found_scores = engine.rank(batch, width)
            assert found.shape == items.shape
            assert shared(found, items) > 0.75  # another kernel's 16 bit: random answers are close
            same = found[:, :, None] == items[:, None, :]  # of an item that both found the scores are compared
            mine, theirs = found_scores[:, :, None].expand(same.shape), scores[:, None, :].expand(same.shape)
            close = torch.isclose(mine[same], theirs[same], rtol=0.03, atol=0.2).float().mean()
            # by another rounding a token that stands between two experts goes to the other, and its score elsewhere
            assert float(close) > (0.85 if CONFIGS[name].n_experts else 0.999)
            for row, history in zip(found.tolist(), batch, strict=True):
                assert min(row) >= 0
                assert len(set(row)) == width
                assert not set(row) & set(history)


@pytest.mark.skipif(not GPU, reason="the interpreter would take minutes")
def test_each_answer_depends_on_its_own_request_alone() -> None:
    engine = on_engine(plain_recommender(CONFIGS["experts"]))
    batch = histories(7, 90)
    items, scores = engine.rank(batch, 32)
    for row, history in enumerate(batch):
        alone, alone_scores = engine.rank([history], 32)
        assert shared(items[row : row + 1], alone) > 0.9
        torch.testing.assert_close(scores[row : row + 1], alone_scores, rtol=0.03, atol=0.2)
    again, _ = engine.rank(batch, 32)
    assert torch.equal(again, items)


@pytest.mark.skipif(not GPU, reason="the interpreter would take minutes")
def test_fewer_unseen_items_than_asked_for_end_in_none() -> None:
    engine = on_engine(plain_recommender(DENSE))
    history = list(range(ITEMS - 5))
    items, scores = engine.rank([history, []], 32)
    assert sorted(items[0, :5].tolist()) == list(range(ITEMS - 5, ITEMS))
    assert items[0, 5:].tolist() == [-1] * 27
    assert bool((scores[0, 5:] == -torch.inf).all())
    assert min(items[1].tolist()) >= 0
    (row, _) = engine.recommend([[f"i{item}" for item in history], []], 10)
    assert len(row) == 5
    kept, _ = engine.rank([history], 32, filter_seen=False)
    assert min(kept[0].tolist()) >= 0


@pytest.mark.skipif(not GPU, reason="the interpreter would take minutes")
@pytest.mark.parametrize("width", [1, 3, 50, 64, 100, 512])
def test_every_width_is_answered_in_its_own_length(width: int) -> None:
    """Also beyond the codebook's 64: the first level then has fewer beams than the others."""
    expected, _ = plain_recommender(DENSE).rank([[1, 2], [3]], beam_width(width))
    found, scores = on_engine(plain_recommender(DENSE)).rank([[1, 2], [3]], width)
    assert found.shape == scores.shape == (2, width)
    assert width < 8 or shared(found, expected[:, :width]) > 0.75
    assert bool(scores.isfinite().all())
    assert bool((scores.diff(dim=1) <= 0).all())


@pytest.mark.skipif(not GPU, reason="graphs are captured on a GPU only")
def test_a_warm_engine_captures_nothing_more_and_answers_several_threads() -> None:
    engine = on_engine(plain_recommender(DENSE))
    engine.warm_up(5, [32, 50])
    ready = dict(engine.session._captured)
    batches = [histories(1 + seed % 5, 60, seed) for seed in range(40)]
    alone = [engine.rank(batch, 32)[0] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: engine.rank(batch, 32)[0], batches))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert engine.session._captured == ready


@pytest.mark.skipif(not GPU, reason="the interpreter would take minutes")
def test_more_rows_than_one_launch_takes_are_answered_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = on_engine(plain_recommender(DENSE))
    batch = histories(7, 20)
    whole, _ = engine.rank(batch, 32)
    monkeypatch.setattr("model.engine.session.most_requests", lambda _width: 3)
    pieces, _ = engine.rank(batch, 32)
    assert shared(pieces, whole) > 0.9


def test_a_width_beyond_the_kernels_is_refused_and_no_request_is_no_answer() -> None:
    engine = on_engine(plain_recommender(DENSE))
    assert engine.recommend([], 3) == []
    with pytest.raises(ModelError, match="beam_width"):
        engine.rank([[1]], 2000)
    with pytest.raises(ModelError, match="k: "):
        engine.recommend([[]], ITEMS + 1)
