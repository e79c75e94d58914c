"""From a log to a checkpoint that the service can serve, or a sentence that says why not."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from experiment.events import Interaction, Kind, Record, Served
from experiment.feedback import Span
from experiment.store.engine import create_engine
from experiment.store.events_sql import SqlEventLog
from experiment.store.feedback_memory import MemoryFeedbackLog
from experiment.store.memory import MemoryEventLog, MemoryTables
from experiment.store.migrate import upgrade
from model.catalogue import Catalogue
from model.checkpoint import read, save
from model.config import OneRecConfig
from model.errors import CheckpointError
from model.gbpo import AlignOptions
from model.onerec import OneRecV2
from model.recommender import Recommender
from model.semantic_ids import Tokenizer
from model.signals import UserSignals
from model.threads import torch_threads
from quant.load import quantize_checkpoint
from quant.recipes import recipe_named
from serving.alignment import Listener, align_checkpoint
from serving.cli import app
from serving.errors import ConfigurationError

NOW = datetime(2026, 11, 23, tzinfo=UTC)
ITEMS = 20
CONFIG = OneRecConfig(
    d_model=32, n_layers=1, n_heads=2, kv_groups=2, context_len=4, ffn_dim=32, sid_embed_dim=8, codebook_size=5,
    encoder_dim=8,
)  # fmt: skip
OPTIONS = AlignOptions(epochs=2, batch_size=32, learning_rate=3e-3)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 items, i0 to i19, in bfloat16."""
    return saved(tmp_path_factory.mktemp("align") / "bf16", CONFIG)


def saved(folder: Path, config: OneRecConfig) -> Path:
    torch.manual_seed(0)
    picked = torch.randperm(125)[:ITEMS]
    codes = torch.stack([picked // 25, picked // 5 % 5, picked % 5], dim=1)
    names = tuple(f"i{item}" for item in range(ITEMS))
    catalogue = Catalogue(names, ("",) * ITEMS, ((),) * ITEMS)
    tokenizer = Tokenizer(codes, torch.zeros(3, 5, 2))
    save(folder, OneRecV2(config), config, catalogue, tokenizer, extra={"preset": "toy"}, dtype=torch.bfloat16)
    return folder


def records(users: int = 12, requests: int = 4, prefix: str = "i", **changes: Any) -> list[Record]:
    """Everybody plays an item the longer the lower its number, and dismisses i19."""
    rng, found = np.random.default_rng(0), list[Record]()
    for user in range(users):
        for hour in range(requests):
            request, name, at = f"r{user}-{hour}", f"u{user}", NOW + timedelta(hours=hour)
            items = rng.choice(ITEMS, 5, replace=False).tolist()
            fields: dict[str, Any] = {
                "experiment": None, "run": None, "arm": None, "bucket": None, "phase": None, "served_variant": "bf16",
                "table_version": 1, "reason": "DEFAULT", "fallback": None, "failed": False, "slow": False,
                "forced": False, "latency_ms": 5.0, "history": (f"{prefix}{user % ITEMS}",),
                "slate": tuple((f"{prefix}{item}", -4.0) for item in items),
            }  # fmt: skip
            found.append(Served(request, name, received_at=at, **(fields | changes)))
            for item in items:
                watched_s = 100.0 - 4 * item + 0.01 * hour + 0.001 * user
                events = [
                    (Kind.IMPRESSION, 1.0),
                    (Kind.WATCH, watched_s),
                    *([(Kind.DISMISS, 1.0)] if item == 19 else []),
                ]
                found += [
                    Interaction(f"{request}{kind}{item}", kind, request, name, f"{prefix}{item}", 0, value, at, at)
                    for kind, value in events
                ]
    return found


def log_of(found: list[Record]) -> MemoryFeedbackLog:
    tables = MemoryTables()
    MemoryEventLog(tables).append(found)
    return MemoryFeedbackLog(tables)


def test_an_aligned_checkpoint_is_served_like_any_other_and_says_what_it_was_made_of(
    checkpoint: Path, tmp_path: Path
) -> None:
    read_, learned = list[tuple[int, int]](), list[tuple[int, int]]()
    listener = Listener(lambda done, of: read_.append((done, of)), lambda done, of, _step: learned.append((done, of)))
    span = Span(since=NOW + timedelta(hours=1), variant="bf16")
    found = align_checkpoint(checkpoint, tmp_path / "new", log_of(records()), span, OPTIONS, 3, listener=listener)
    before, after = read(checkpoint), read(tmp_path / "new")
    assert after.digest == found.digest != before.digest
    assert after.catalogue.ids == before.catalogue.ids
    assert {value.dtype for value in after.tensors.values()} == {torch.bfloat16}
    about = after.extra["aligned"]
    assert after.extra["preset"] == "toy"
    assert (about["from"], about["variant"], about["objective"], about["seed"]) == (before.digest, "bf16", "GBPO", 3)
    assert (about["slates"], about["items"], about["durations"]) == (36, 180, "one bucket")
    assert about["since"] == "2026-11-23T01:00:00+00:00"
    assert about["options"]["learning_rate"] == 3e-3
    assert len(about["losses"]) == 2
    assert found.gathered.scored == 180, "the first hour's watches, before the span, are compared with"
    assert (read_[-1], learned[-1]) == ((48, 48), (12, 12))
    assert found.plot.read_bytes().startswith(b"\x89PNG")
    items = Recommender.load(tmp_path / "new").recommend([["i1"]], 5)[0]
    assert len(items) == 5


def test_alignment_moves_the_policy_towards_what_was_played(checkpoint: Path, tmp_path: Path) -> None:
    options = AlignOptions(epochs=8, batch_size=64, learning_rate=1e-2)
    align_checkpoint(checkpoint, tmp_path / "new", log_of(records()), Span(), options, 0)
    places = []
    for folder in (checkpoint, tmp_path / "new"):
        items = Recommender.load(folder).recommend([[f"i{user}"] for user in range(12)], 4)
        places.append(np.mean([int(item.item_id[1:]) for row in items for item in row]))
    assert places[1] < places[0] - 2


def test_a_model_with_pathways_learns_what_liked_items_and_profiles_say(tmp_path: Path) -> None:
    """Only the profile, and what is liked, tell who plays what: half play the low numbers long, half the high ones."""
    source = saved(tmp_path / "bf16", replace(CONFIG, positive_len=2, profile_features=16))
    found = list[Record]()
    for one in records(users=24, requests=6, history=()):
        low = int(one.user_id[1:]) % 2 == 0
        if isinstance(one, Served):
            liked = ("i1", "i2") if low else ("i17", "i18")
            found.append(replace(one, liked=liked, profile=(("side", "low" if low else "high"),)))
        elif one.kind is not Kind.DISMISS:
            number = int(one.item_id[1:])
            played_s = 4.0 * (ITEMS - number if low else 1 + number)
            found.append(replace(one, value=played_s) if one.kind is Kind.WATCH else one)
    options = replace(OPTIONS, epochs=30, learning_rate=1e-2)
    align_checkpoint(source, tmp_path / "new", log_of(found), Span(), options, 0)
    model = Recommender.load(tmp_path / "new")
    told: list[UserSignals[str]] = [
        UserSignals((), ("i1", "i2"), {"side": "low"}),
        UserSignals((), ("i17", "i18"), {"side": "high"}),
    ]
    low, high = (statistics.fmean(int(one.item_id[1:]) for one in row) for row in model.recommend(told, 5))
    assert low < high - 4


@pytest.mark.parametrize(
    ("found", "span", "named"),
    [
        ([], Span(), "no feedback found: the log holds no slates there"),
        (records(slate=()), Span(), "CROSSFADE_LOG_SLATES"),
        (records(), Span(variant="fp8"), "no feedback found of variant 'fp8'"),
        (records(), Span(since=NOW + timedelta(days=9)), "since 2026-12-02"),
        ([one for one in records() if isinstance(one, Served)], Span(), "no client reported an impression"),
        (records(prefix="movie-"), Span(), "none of the 240 items .* trained on another one"),
        (records(1, 1), Span(), "nothing to learn"),
    ],
    ids=["empty", "not logged", "variant", "since", "no impressions", "catalogue", "first requests only"],
)
def test_what_cannot_be_learned_from_is_refused_with_the_reason(
    checkpoint: Path, tmp_path: Path, found: list[Record], span: Span, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        align_checkpoint(checkpoint, tmp_path / "new", log_of(found), span, OPTIONS, 0)
    assert not (tmp_path / "new").exists()


def test_a_quantised_checkpoint_is_refused_with_the_reason(checkpoint: Path, tmp_path: Path) -> None:
    quantize_checkpoint(checkpoint, tmp_path / "fp8", recipe_named("e4m3"))
    with pytest.raises(CheckpointError, match=r"quantised.*align the plain checkpoint"):
        align_checkpoint(tmp_path / "fp8", tmp_path / "new", log_of(records()), Span(), OPTIONS, 0)


def test_a_checkpoint_does_not_replace_itself(checkpoint: Path) -> None:
    with pytest.raises(ConfigurationError, match="must not replace its source"):
        align_checkpoint(checkpoint, checkpoint, log_of(records()), Span(), OPTIONS, 0)


def _command(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["align", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command_reads_the_homes_database_and_writes_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'crossfade.db'}")
    upgrade(engine)
    SqlEventLog(engine).append(records())
    (tmp_path / "durations.csv").write_text("item_id,duration_s\n" + "".join(f"i{i},{100 + i}\n" for i in range(19)))
    status, told = _command(
        checkpoint, tmp_path / "new", "--home", tmp_path, "--variant", "bf16", "--since", "2026-11-23", "--epochs", "1",
        "--durations", tmp_path / "durations.csv", "--learning-rate", "1e-3", "--supervision", "0.1", "--seed", "4",
    )  # fmt: skip
    assert status == 0, told
    assert "slates learned from" in told
    about = read(tmp_path / "new").extra["aligned"]
    assert (about["slates"], about["durations"], about["seed"]) == (48, "given", 4)
    assert about["options"]["supervision"] == 0.1
    assert about["since"] == "2026-11-23T00:00:00+00:00"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--since", "yesterday"), "--since: 'yesterday'"),
        (("--durations", "nowhere.csv"), "nowhere.csv"),
        (("--learning-rate", "0"), "learning_rate"),
        ((), "no database in"),
    ],
)
def test_the_command_says_what_is_wrong(checkpoint: Path, tmp_path: Path, more: tuple[str, ...], named: str) -> None:
    status, told = _command(checkpoint, tmp_path / "new", "--home", tmp_path / "empty", *more)
    assert status == 64
    assert named in told
    assert not (tmp_path / "empty").exists()


def test_the_command_leaves_an_older_databases_schema_alone(checkpoint: Path, tmp_path: Path) -> None:
    upgrade(create_engine(f"sqlite:///{tmp_path / 'crossfade.db'}"), "0002")
    status, told = _command(checkpoint, tmp_path / "new", "--home", tmp_path)
    assert (status, "crossfade db upgrade" in told) == (64, True)
