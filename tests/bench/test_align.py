"""A small loop through the real store: the reward rises and ids stay legal; with the sign flipped it must fall."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import OneRecConfig
from model.data import Row as Interaction
from model.data import from_rows
from model.gbpo import AlignOptions, gbpo_loss
from model.split import Split, leave_one_out
from model.threads import torch_threads
from model.train import TrainOptions
from tests.bench.align import COLUMNS, Loop, Row, Simulation, flat, markdown, plain_ratio, run, trained
from tests.bench.align_world import World

ITEMS, USERS, GENRES = 60, 160, 4
DURATIONS_S = (10.0, 40.0)
SMALL = OneRecConfig(
    d_model=16,
    n_layers=1,
    n_heads=2,
    kv_groups=2,
    context_len=8,
    ffn_dim=32,
    sid_embed_dim=8,
    codebook_size=8,
    encoder_dim=16,
)
LOOP = Loop(
    rounds=2, requests=4, k=6, samples=20, beams=(10,), probes=32,
    options=AlignOptions(epochs=4, batch_size=256, learning_rate=2e-3),
)  # fmt: skip
RISE = 0.1
LOST = 0.05
"""How much of its legality a policy may lose."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def split() -> Split:
    """Users who stay mostly within one of four genres."""
    rng, rows = np.random.default_rng(0), []
    for user in range(USERS):
        own = np.arange(user % GENRES, ITEMS, GENRES)
        picked = dict.fromkeys([*rng.choice(own, 9, replace=False).tolist(), *rng.choice(ITEMS, 4).tolist()])
        rows += [Interaction(f"u{user}", f"i{item}", 100.0 * step + user, 0.0) for step, item in enumerate(picked)]
    names = {f"i{item}": "" for item in range(ITEMS)}
    return leave_one_out(from_rows(rows, names, {f"i{item}": (f"g{item % GENRES}",) for item in range(ITEMS)}))


@pytest.fixture(scope="module")
def base(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("align") / "base"
    return trained(split, SMALL, 0, folder, TrainOptions(epochs=16, batch_size=128))


def _rows(split: Split, base: Path, folder: Path, sign: float) -> list[Row]:
    simulation = Simulation(split, World(split, 3, DURATIONS_S, appeal_sd=2.5), base, folder, LOOP, 1)
    return run(simulation, LOOP.rounds, lambda p, old, advantage: gbpo_loss(p, old, sign * advantage))


def test_the_reward_rises_and_ids_stay_legal(split: Split, base: Path, tmp_path: Path) -> None:
    rows = _rows(split, base, tmp_path, 1.0)
    assert rows[-1]["reward"] > rows[0]["reward"] + RISE
    for name in ("legal_sampled", "legal_beam_10"):
        assert rows[-1][name] >= rows[0][name] - LOST


def test_with_the_advantages_sign_flipped_the_reward_falls(split: Split, base: Path, tmp_path: Path) -> None:
    rows = _rows(split, base, tmp_path, -1.0)
    assert rows[-1]["reward"] < rows[0]["reward"] - RISE


def test_playing_times_follow_liking_and_dismissals_go_against_it(split: Split) -> None:
    world, rng = World(split, 1, DURATIONS_S), np.random.default_rng(0)
    assert ((world.duration_s >= 10.0) & (world.duration_s <= 40.0)).all()
    best, worst = int(world.liking[0].argmax()), int(world.liking[0].argmin())
    viewings = [world.watch(0, [best, worst], rng) for _ in range(300)]
    shares = np.array([[v.played_s / world.duration_s[item] for v, item in zip(pair, (best, worst), strict=True)]
                       for pair in viewings])  # fmt: skip
    assert shares.mean(axis=0) == pytest.approx(world.liking[0, [best, worst]], abs=0.05)
    assert sum(pair[1].dismissed for pair in viewings) > 5 * sum(pair[0].dismissed for pair in viewings)
    assert world.reward([0], [[best, worst]]) == pytest.approx(world.liking[0, [best, worst]].mean())


def test_a_plain_ratio_is_the_stated_one_without_its_bound() -> None:
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = plain_ratio(log_prob, torch.tensor([-1.5, -2.0]), torch.tensor([1.0, -1.0]))
    assert loss.item() == pytest.approx(-(np.exp(0.5) - 1.0) / 2)


def test_results_are_one_table_and_one_flat_object() -> None:
    rows: list[Row] = [dict.fromkeys(COLUMNS, 0.5 + turn / 10) for turn in range(2)]
    results = {"GBPO": [rows, rows], "no training": [rows, rows]}
    numbers = json.loads(json.dumps(flat(results)))
    assert numbers["GBPO round 1 reward"] == 0.6
    setting = {"hardware": "h", "versions": "v", "commit": "c", "command": "x"}
    assert "| no training | 1 | 0.6000 | 60.00% |" in markdown(results, setting, "note")
