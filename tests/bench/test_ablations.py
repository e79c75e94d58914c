from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.beam import beam_search
from model.catalogue import Catalogue
from model.config import OneRecConfig
from model.data import Row as Interaction
from model.data import from_rows
from model.onerec import OneRecV2
from model.recommender import Recommender
from model.semantic_ids import Tokenizer
from model.split import Split, leave_one_out
from tests.bench.ablations import TRAINED, Results, Variant, make_trained, searched, trie_of_all_ids

ITEMS = 20


@pytest.fixture
def split() -> Split:
    rows = [
        Interaction(f"u{user}", f"i{(3 * user + step) % ITEMS}", 100.0 * step + user, 0.0)
        for user in range(9)
        for step in range(6)
    ]
    return leave_one_out(from_rows(rows, {f"i{item}": "" for item in range(ITEMS)}))


@pytest.fixture
def recommender(split: Split) -> Recommender:
    torch.manual_seed(0)
    config = OneRecConfig(
        d_model=16,
        n_layers=1,
        n_heads=2,
        kv_groups=2,
        context_len=6,
        ffn_dim=16,
        sid_embed_dim=4,
        codebook_size=4,
        levels=3,
    )
    picked = torch.randperm(64)[:ITEMS]
    codes = torch.stack([picked // 16, picked // 4 % 4, picked % 4], dim=1)
    model = OneRecV2(config)
    with torch.no_grad():
        for head in model.heads:
            head.weight.normal_()
    return Recommender(model, Catalogue.of(split.interactions), Tokenizer(codes, torch.zeros(3, 4, 2)))


def test_the_trie_of_all_ids_forbids_nothing_and_knows_which_ids_are_items(recommender: Recommender) -> None:
    trie, item_of_id = trie_of_all_ids(recommender)
    assert trie.n_items == 64
    for item, (a, b, c) in enumerate(recommender.codes.tolist()):
        assert int(item_of_id[16 * a + 4 * b + c]) == item
    assert int((item_of_id < 0).sum()) == 64 - ITEMS


@torch.inference_mode()
def test_illegal_share_of_a_free_beam_is_counted_as_by_loops(recommender: Recommender, split: Split) -> None:
    trie, item_of_id = trie_of_all_ids(recommender)
    valid = {tuple(row) for row in recommender.codes.tolist()}
    shares = []
    for user in split.evaluated_users().tolist():
        history = split.history(user, with_validation=True).tolist()
        found = beam_search(recommender.model, recommender.context([history]), trie, 16).items[0].tolist()
        shares.append(sum((key // 16, key // 4 % 4, key % 4) not in valid for key in found) / 16)
    row = searched(recommender, split, trie, item_of_id, 16)
    assert 0.0 < row["illegal_beam"] < 1.0
    assert row["illegal_beam"] == pytest.approx(sum(shares) / len(shares))
    legal = searched(recommender, split, recommender.trie, torch.arange(ITEMS), 16)
    assert legal["illegal_beam"] == legal["illegal_top10"] == 0.0


def test_a_configuration_that_several_tables_share_is_trained_once_and_rows_are_kept(tmp_path: Path) -> None:
    path, trained = tmp_path / "ablations.json", []

    def train_one(name: str, variant: Variant) -> dict[str, float]:
        trained.append(variant.config)
        return {"nats": float(len(trained)), "hr": 0.1, "ndcg": 0.1, "parameters": 1.0, "mflop": 1.0, "kv_values": 1.0}

    for _ in range(2):
        results = Results(path, "note", fresh=False)
        for name in ("Lkv", "G"):
            make_trained(name, TRAINED[name], results, train_one)
    different = {variant.config for name in ("Lkv", "G") for variant in TRAINED[name]}
    assert len(trained) == len(set(trained)) == len(different)
    assert results.tables["G"]["G=2"] == results.tables["Lkv"]["Lkv=1, S=1"]
    assert json.loads(path.read_text())["numbers"]["G G=2 nats"] == 1.0
    assert "| G=2 | 1.000 |" in path.with_suffix(".md").read_text()
    assert Results(path, "another note", fresh=False).known("G", "G=2") is None


def test_tables_that_are_not_made_again_stay_with_what_they_were_made_with(tmp_path: Path) -> None:
    path = tmp_path / "ablations.json"
    first = Results(path, "note", fresh=False)
    first.keep("G", "G=2", {"nats": 1.0})
    made = json.loads(path.read_text())
    del made["made"]  # as files were before tables were told apart
    path.write_text(json.dumps(made | {"commit": "before"}))
    later = Results(path, "note", fresh=False)
    later.keep("trie", "W=10", {"hr": 0.5})
    content = json.loads(path.read_text())
    assert content["numbers"] == {"G G=2 nats": 1.0, "trie W=10 hr": 0.5}
    assert content["made"]["G"]["commit"] == "before"
    assert content["made"]["trie"]["commit"] == first.setting["commit"]
    text = path.with_suffix(".md").read_text()
    assert text.index("## Key/value heads") < text.index("## Without the trie")
    assert "commit before" in text
    later.keep("G", "G=2", {"nats": 1.0})
    assert later.made["G"]["commit"] == "before", "the same row again"
