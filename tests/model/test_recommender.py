from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from model import recommender as recommender_module
from model.catalogue import Catalogue
from model.checkpoint import CheckpointFiles, build_model, save
from model.errors import CheckpointError, ModelError
from model.onerec import OneRecV2
from model.recommender import Recommender, compute_dtype
from model.semantic_ids import Tokenizer


@pytest.fixture
def recommender(toy_model: OneRecV2, toy_catalogue: Catalogue, toy_tokenizer: Tokenizer) -> Recommender:
    return Recommender(toy_model, toy_catalogue, toy_tokenizer, beam_width=8)


def test_recommend_leaves_out_seen_items_and_sorts_by_score(recommender: Recommender) -> None:
    history = ["i3", "i9", "i3"]
    (row,) = recommender.recommend([history], k=8)
    assert len(row) == len({scored.item_id for scored in row}) == 8
    assert not {scored.item_id for scored in row} & set(history)
    assert [scored.score for scored in row] == sorted((scored.score for scored in row), reverse=True)
    assert all(scored.score < 0.0 for scored in row)


def test_recommend_can_repeat_seen_items_on_request(recommender: Recommender) -> None:
    (row,) = recommender.recommend([["i3"]], k=20, filter_seen=False)
    assert {scored.item_id for scored in row} == set(recommender.catalogue.ids)


def test_recommend_empty_history_and_no_request_work(recommender: Recommender) -> None:
    rows = recommender.recommend([[], ["i1"]], k=3)
    assert [len(row) for row in rows] == [3, 3]
    assert recommender.recommend([[]], k=3)[0] == pytest.approx(rows[0]) or rows[0][0].item_id
    assert recommender.recommend([], k=3) == []


def test_recommend_uses_the_newest_items_of_a_long_history(recommender: Recommender) -> None:
    newest = [f"i{item}" for item in range(6)]
    long = recommender.recommend([["i19", "i18", *newest]], k=5, filter_seen=False)
    short = recommender.recommend([newest], k=5, filter_seen=False)
    assert long == short
    assert recommender.recommend([newest[::-1]], k=5, filter_seen=False) != short


def test_recommend_filters_seen_items_older_than_the_context(recommender: Recommender) -> None:
    history = [f"i{item}" for item in range(12)]
    (row,) = recommender.recommend([history], k=8)
    assert {scored.item_id for scored in row} == {f"i{item}" for item in range(12, 20)}
    (rest,) = recommender.recommend([[*history, "i12", "i13"]], k=8)
    assert len(rest) == 6


def test_recommend_widens_the_beam_to_k(recommender: Recommender) -> None:
    assert len(recommender.recommend([[]], k=15)[0]) == 15
    assert len(recommender.recommend([[]], k=15, beam_width=2)[0]) == 15


@pytest.mark.parametrize(
    ("history", "k", "reason"), [(["i1", "zzz"], 3, "unknown item 'zzz'"), ([], 0, "k: "), ([], 21, "k: ")]
)
def test_recommend_bad_request_is_named(recommender: Recommender, history: list[str], k: int, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        recommender.recommend([history], k=k)


def test_recommend_without_the_item_table_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, recommender: Recommender, toy_tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr(recommender_module, "ITEM_TABLE_BYTES", 0)
    plain = Recommender(recommender.model, recommender.catalogue, toy_tokenizer, beam_width=8)
    histories = [["i4", "i5"], ["i6"], []]
    for kept, computed in zip(recommender.recommend(histories, 4), plain.recommend(histories, 4), strict=True):
        assert [scored.item_id for scored in kept] == [scored.item_id for scored in computed]
        assert [scored.score for scored in kept] == pytest.approx([scored.score for scored in computed], abs=1e-5)


def test_recommend_from_several_threads_answers_as_from_one(recommender: Recommender) -> None:
    requests = [[f"i{item}"] for item in range(20)]
    alone = [recommender.recommend([history], k=5) for history in requests]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda history: recommender.recommend([history], k=5), requests)) == alone


def test_load_answers_like_the_model_that_was_saved(
    tmp_path: Path, recommender: Recommender, toy_tokenizer: Tokenizer
) -> None:
    save(tmp_path / "c", recommender.model, recommender.config, recommender.catalogue, toy_tokenizer)
    loaded = Recommender.load(tmp_path / "c", beam_width=8)
    assert loaded.recommend([["i2"]], k=6) == recommender.recommend([["i2"]], k=6)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        Recommender.load(tmp_path / "none")


def test_load_hands_verified_files_to_a_builder(
    tmp_path: Path, recommender: Recommender, toy_tokenizer: Tokenizer
) -> None:
    save(tmp_path / "c", recommender.model, recommender.config, recommender.catalogue, toy_tokenizer)
    built: list[CheckpointFiles] = []

    def builder(files: CheckpointFiles) -> OneRecV2:
        built.append(files)
        return build_model(files)

    Recommender.load(tmp_path / "c", dtype=torch.bfloat16, builder=builder).recommend([[]], k=2)
    assert built[0].config == recommender.config


def test_sixteen_bit_weights_compute_in_float32_where_the_cpu_has_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert compute_dtype(torch.bfloat16, "cpu") is torch.float32
    assert compute_dtype(torch.float32, "cpu") is torch.float32
    assert compute_dtype(torch.bfloat16, "cuda") is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert compute_dtype(torch.bfloat16, "cpu") is torch.bfloat16
    assert compute_dtype(torch.float16, "cpu") is torch.float32
