from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.config import OneRecConfig
from model.data import Interactions
from model.errors import CheckpointError
from model.split import Split, leave_one_out
from model.train import Progress, TrainOptions, TrainResult, train
from model.train_options import YOUNGER_FIELDS
from model.training_state import TrainingState, load_state, save_state

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = TrainOptions(
    epochs=3,
    batch_size=32,
    learning_rate=1e-2,
    accumulate=2,
    patience=3,
    save_every=2,
    history_dropout=0.1,
    encoding_dropout=0.1,
    newest_targets=5,
    average=0.8,
    shuffle_instants=True,
)


class KilledError(Exception):
    """Stands for a killed process."""


@pytest.fixture
def toy_split(toy_interactions: Interactions) -> Split:
    """Items come in pairs of one time, so that their order is drawn in each epoch."""
    paged = toy_interactions.timestamp // 200.0
    return leave_one_out(dataclasses.replace(toy_interactions, timestamp=paged))


@pytest.fixture
def demanding(toy_config: OneRecConfig) -> OneRecConfig:
    """Dropout needs the random state, experts need their biases."""
    sizes = {"n_experts": 6, "n_shared_experts": 1, "experts_per_token": 2, "expert_dim": 8, "dense_layers": 1}
    return dataclasses.replace(toy_config, dropout=0.2, **sizes)


def _stop_at(step: int) -> Callable[[Progress], None]:
    def progress(report: Progress) -> None:
        if report.step == step:
            raise KilledError

    return progress


def _assert_equal_to_the_bit(first: TrainResult, second: TrainResult) -> None:
    assert first.losses == second.losses
    assert first.step_losses == second.step_losses
    assert first.validation_losses == second.validation_losses
    states = first.model.state_dict(), second.model.state_dict()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


@pytest.mark.parametrize("patience", [3, 0])
@pytest.mark.parametrize("stops", [(1,), (2,), (3,), (5, 9), (7, 8, 9)])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(
    stops: tuple[int, ...], patience: int, toy_split: Split, demanding: OneRecConfig, tmp_path: Path
) -> None:
    options = dataclasses.replace(OPTIONS, patience=patience)
    whole = train(toy_split, demanding, seed=4, options=options)
    assert len(whole.step_losses) > max(stops)
    path = tmp_path / "state.safetensors"
    for stop in stops:
        with pytest.raises(KilledError):
            train(toy_split, demanding, seed=4, options=options, progress=_stop_at(stop), state_path=path)
    torch.manual_seed(99)  # nothing of the caller's random state may matter
    resumed = train(toy_split, demanding, seed=4, options=options, state_path=path)
    _assert_equal_to_the_bit(whole, resumed)


def test_resume_goes_on_and_does_not_start_again(toy_split: Split, demanding: OneRecConfig, tmp_path: Path) -> None:
    path, reports = tmp_path / "state.safetensors", list[Progress]()
    with pytest.raises(KilledError):
        train(toy_split, demanding, seed=4, options=OPTIONS, progress=_stop_at(7), state_path=path)
    result = train(toy_split, demanding, seed=4, options=OPTIONS, progress=reports.append, state_path=path)
    assert reports[0].step == 7, "the last saved state is that after step 6"
    assert reports[-1].step == len(result.step_losses)


def test_finished_training_returns_its_result_at_once(
    toy_split: Split, demanding: OneRecConfig, tmp_path: Path
) -> None:
    path, reports = tmp_path / "state.safetensors", list[Progress]()
    whole = train(toy_split, demanding, seed=4, options=OPTIONS, state_path=path)
    again = train(toy_split, demanding, seed=4, options=OPTIONS, progress=reports.append, state_path=path)
    _assert_equal_to_the_bit(whole, again)
    assert reports == []


@pytest.mark.parametrize("planted", ["moments", "dropout", "order"])
def test_resume_with_a_forgotten_part_of_the_state_would_be_noticed(
    planted: str, toy_split: Split, demanding: OneRecConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(toy_split, demanding, seed=4, options=OPTIONS)
    path = tmp_path / "state.safetensors"
    with pytest.raises(KilledError):
        train(toy_split, demanding, seed=4, options=OPTIONS, progress=_stop_at(7), state_path=path)

    def forgetful(path: Path, fingerprint: str) -> TrainingState:
        state = load_state(path, fingerprint)
        fresh = torch.Generator().manual_seed(1).get_state()
        if planted == "dropout":
            state.tensors["rng"] = fresh[None]
        elif planted == "order":
            state.tensors["order_rng"] = fresh
        else:
            for name in [name for name in state.tensors if name.startswith("moment1.")]:
                del state.tensors[name]
        return state

    monkeypatch.setattr("model.train_loop.load_state", forgetful)
    resumed = train(toy_split, demanding, seed=4, options=OPTIONS, state_path=path)
    assert resumed.step_losses[:6] == whole.step_losses[:6]
    assert resumed.step_losses[6:] != whole.step_losses[6:]


def test_state_without_its_average_would_be_noticed(
    toy_split: Split, demanding: OneRecConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, path = dataclasses.replace(OPTIONS, patience=0), tmp_path / "state.safetensors"
    whole = train(toy_split, demanding, seed=4, options=options, state_path=path)

    def forgetful(path: Path, fingerprint: str) -> TrainingState:
        state = load_state(path, fingerprint)
        return TrainingState(state.position, {k: v for k, v in state.tensors.items() if not k.startswith("average.")})

    monkeypatch.setattr("model.train_loop.load_state", forgetful)
    again = train(toy_split, demanding, seed=4, options=options, state_path=path)
    assert not torch.equal(again.model.bos, whole.model.bos)


def test_state_from_before_the_younger_options_is_still_known() -> None:
    plain = TrainOptions().to_dict()
    assert not set(YOUNGER_FIELDS) & set(plain)
    assert plain == {k: v for k, v in dataclasses.asdict(TrainOptions()).items() if k not in YOUNGER_FIELDS}
    chosen = OPTIONS.to_dict()
    assert TrainOptions(**chosen) == OPTIONS
    assert {name: chosen[name] for name in YOUNGER_FIELDS} == {
        "encoding_dropout": 0.1,
        "newest_targets": 5,
        "average": 0.8,
    }


@pytest.fixture
def state_file(toy_split: Split, demanding: OneRecConfig, tmp_path: Path) -> Path:
    path = tmp_path / "state.safetensors"
    train(toy_split, demanding, seed=4, options=dataclasses.replace(OPTIONS, epochs=1), state_path=path)
    return path


def _meta(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as handle:
        meta: dict[str, str] = handle.metadata()
        return meta


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"learning_rate": 0.02},
        {"accumulate": 1},
        {"dropout": 0.1},
        {"encoding_dropout": 0.2},
        {"newest_targets": 0},
        {"average": 0.0},
    ],
)
def test_state_of_another_training_is_refused(
    change: dict[str, float], state_file: Path, toy_split: Split, demanding: OneRecConfig
) -> None:
    options = {name: value for name, value in change.items() if name not in ("seed", "dropout")}
    config = dataclasses.replace(demanding, dropout=change.get("dropout", demanding.dropout))
    with pytest.raises(CheckpointError, match="other data, options, model, seed"):
        train(
            toy_split,
            config,
            seed=int(change.get("seed", 4)),
            options=dataclasses.replace(OPTIONS, epochs=1, **options),
            state_path=state_file,
        )


def test_state_that_is_damaged_or_foreign_is_refused(state_file: Path) -> None:
    fingerprint = _meta(state_file)["fingerprint"]
    assert load_state(state_file, fingerprint).position.epoch == 1
    tensors, meta = load_file(state_file), _meta(state_file)
    tensors["model.bos"] = tensors["model.bos"] + 1
    save_file(tensors, state_file, metadata=meta)
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(state_file, fingerprint)
    save_file(tensors, state_file)
    with pytest.raises(CheckpointError, match="not a training state"):
        load_state(state_file, fingerprint)
    state_file.write_bytes(state_file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="not a readable training state"):
        load_state(state_file, fingerprint)


def test_state_that_cannot_be_written_whole_leaves_the_older_one(
    state_file: Path, toy_split: Split, demanding: OneRecConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_file.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_state(state_file, load_state(state_file, _meta(state_file)["fingerprint"]), "x")
    assert state_file.read_bytes() == before
