from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import recommender as recommender_module
from model.catalogue import Catalogue
from model.checkpoint import CheckpointFiles, build_model, save
from model.config import OneRecConfig
from model.context_tokens import UserTokens
from model.errors import CheckpointError, ModelError
from model.onerec import OneRecV2
from model.recommender import Recommender, compute_dtype
from model.semantic_ids import Tokenizer
from model.signals import UserSignals

NAMES = [f"i{item}" for item in range(20)]


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


@pytest.fixture
def told(
    make_model: Callable[..., OneRecV2],
    pathway_config: OneRecConfig,
    toy_catalogue: Catalogue,
    toy_tokenizer: Tokenizer,
) -> Recommender:
    """A recommender whose model has all pathways."""
    return Recommender(make_model(pathway_config), toy_catalogue, toy_tokenizer, beam_width=8)


def test_recommend_every_signal_changes_the_scores(told: Recommender) -> None:
    full = UserSignals(["i1", "i2", "i3"], ["i2"], {"gender": "F"})
    others = [
        full,
        dataclasses.replace(full, history=["i1", "i3", "i2"]),
        dataclasses.replace(full, liked=["i3"]),
        dataclasses.replace(full, liked=[]),
        dataclasses.replace(full, profile={}),
    ]
    scores = {tuple(told.recommend([other], k=5)[0]) for other in others}
    assert len(scores) == len(others)


def test_recommend_signals_of_a_history_alone_are_answered_like_it(told: Recommender) -> None:
    assert told.recommend([UserSignals(["i1", "i2"])], k=5) == told.recommend([["i1", "i2"]], k=5)


def test_recommend_leaves_out_liked_items_too_and_names_unknown_ones(told: Recommender) -> None:
    (row,) = told.recommend([UserSignals(["i1"], ["i2"])], k=20)
    assert {scored.item_id for scored in row} == set(NAMES) - {"i1", "i2"}
    with pytest.raises(ModelError, match="unknown item 'zzz'"):
        told.recommend([UserSignals(["i1"], ["zzz"])], k=3)


def test_recommend_a_model_without_pathways_ignores_their_signals(recommender: Recommender) -> None:
    plain = recommender.recommend([["i1", "i2"]], k=5)
    assert recommender.recommend([UserSignals(["i1", "i2"], ["i2"], {"gender": "F"})], k=5) == plain


def test_context_rows_have_all_valid_tokens_first(told: Recommender) -> None:
    """What reads keys up to a length, as the engine does, may take the count of valid tokens for it."""
    users = [UserSignals([1, 2, 3], [2]), UserSignals([1], [2, 3, 4, 5]), UserSignals([], [])]
    for named in (False, True):
        context = told.context([dataclasses.replace(user, user_id=str(user) * named) for user in users])
        assert context.mask[:, 0, 0].sum(1).tolist() == [1 + 3 + 1, 1 + 1 + 3, 1]
        assert torch.equal(context.mask[:, 0, 0], context.mask[:, 0, 0].sort(descending=True, stable=True).values)


ITEMS = st.lists(st.sampled_from(NAMES), max_size=9)
VISIT = st.builds(
    UserSignals,
    history=ITEMS,
    liked=ITEMS,
    profile=st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy")),
    user_id=st.sampled_from(["", "anna", "berta", "clara"]),
)


@pytest.mark.parametrize("bound", [0, 4000, 10**6])
@given(batches=st.lists(st.lists(VISIT, min_size=1, max_size=3), max_size=5))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_with_the_cache_equal_those_without_it(
    told: Recommender, toy_tokenizer: Tokenizer, bound: int, batches: list[list[UserSignals[str]]]
) -> None:
    """To the bit, whatever was asked before, by whom, together with whom, and however little is kept."""
    kept = Recommender(told.model, told.catalogue, toy_tokenizer, 8, cache_bytes=bound)
    for batch in batches:
        for _ in range(2):
            nameless = [dataclasses.replace(user, user_id="") for user in batch]
            assert kept.recommend(batch, k=5) == told.recommend(nameless, k=5)
    assert kept.contexts.size_bytes <= bound
    assert told.contexts.hits == told.contexts.misses == 0


def test_answers_with_the_cache_follow_a_history_that_grows(told: Recommender) -> None:
    history: list[str] = []
    for item in NAMES[:9]:
        history.append(item)
        for _ in range(2):
            named = told.recommend([UserSignals(history, user_id="anna")], k=5)
            assert named == told.recommend([history], k=5)
    assert (told.contexts.hits, told.contexts.misses, len(told.contexts)) == (9, 9, 1)


def test_context_of_a_known_user_is_not_computed_again(told: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    plain = Recommender._computed

    def counting(self: Recommender, users: list[UserTokens]) -> object:
        computed.append(len(users))
        return plain(self, users)

    monkeypatch.setattr(Recommender, "_computed", counting)
    anna, berta = UserSignals(["i1"], user_id="anna"), UserSignals(["i2"], user_id="berta")
    for batch in ([anna], [anna], [anna, berta], [berta, anna]):
        told.recommend(batch, k=3)
    assert computed == [1, 1]


def test_every_new_item_makes_every_key_another_one(told: Recommender) -> None:
    """Why keys are not kept from one history to the next: recency is added before the norm."""
    before, after = told.context([[1, 2, 3]]), told.context([[1, 2, 3, 4]])
    for key, other in zip(before.keys, after.keys, strict=True):
        assert torch.equal(key[:, :, 0], other[:, :, 0]), "but the profile token's"
        assert not torch.isclose(key[:, :, 1:], other[:, :, 2:]).all(-1).any()


def test_recommend_with_the_cache_from_several_threads_answers_as_from_one(told: Recommender) -> None:
    users = [UserSignals([f"i{step % 20}"], [f"i{step % 3}"], {}, f"u{step % 7}") for step in range(120)]
    alone = [told.recommend([dataclasses.replace(user, user_id="")], k=5) for user in users]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda user: told.recommend([user], k=5), users)) == alone
    assert told.contexts.misses > 0


def test_recommend_with_the_cache_but_without_the_item_table_agrees_within_rounding(
    monkeypatch: pytest.MonkeyPatch, told: Recommender, toy_tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr(recommender_module, "ITEM_TABLE_BYTES", 0)
    kept = Recommender(told.model, told.catalogue, toy_tokenizer, beam_width=8)
    users = [UserSignals(["i4", "i5"], ["i5"], {}, "anna"), UserSignals(["i6"], [], {"a": "x"}, "berta")]
    for batch in (users[:1], users, users[::-1]):
        for row, expected in zip(kept.recommend(batch, 4), told.recommend(batch, 4), strict=True):
            assert [scored.item_id for scored in row] == [scored.item_id for scored in expected]
            assert [scored.score for scored in row] == pytest.approx([s.score for s in expected], abs=1e-5)


def test_load_gives_the_digest_and_the_bound_of_the_cache(
    tmp_path: Path, told: Recommender, toy_tokenizer: Tokenizer
) -> None:
    save(tmp_path / "c", told.model, told.config, told.catalogue, toy_tokenizer)
    loaded = Recommender.load(tmp_path / "c", beam_width=8, cache_bytes=12_345)
    signals = UserSignals(["i2", "i3"], ["i3"], {"gender": "F"}, "anna")
    assert loaded.recommend([signals], k=6) == told.recommend([signals], k=6)
    assert loaded.contexts.max_bytes == 12_345
