"""From the spool to the store: everything once, through outages of any kind, and the heartbeat never promises more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from experiment.errors import StoreUnavailableError
from experiment.events import Interaction, Kind, Record
from experiment.ports import Ingested
from experiment.store.memory import MemoryEventLog, MemoryTables
from serving import writer as module
from serving.settings import Settings
from serving.spool import Spool
from serving.writer import EventWriter, adopt_orphans, drain

NOW = datetime(2026, 11, 23, tzinfo=UTC)


class Log(MemoryEventLog):
    """A store that fails as told; `commits_and_fails` loses the answer of a transaction that was committed."""

    def __init__(self) -> None:
        self.tables = MemoryTables()
        super().__init__(self.tables)
        self.error: Exception | None = None
        self.commits_and_fails = 0
        self.batches: list[int] = []

    def append(self, records: Sequence[Record]) -> Ingested:
        if self.error is not None:
            raise self.error
        done = super().append(records)
        self.batches.append(len(records))
        if self.commits_and_fails:
            self.commits_and_fails -= 1
            raise StoreUnavailableError("the answer was lost")
        return done

    @property
    def ids(self) -> list[str]:
        return list(self.tables.interactions)


class Clock:
    """A low watermark that grows by a second whenever it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> datetime:
        self.reads += 1
        return NOW + timedelta(seconds=self.reads)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IDLE_S", 0.002)
    monkeypatch.setattr(module, "_HEARTBEAT_S", 0.004)
    monkeypatch.setattr(module, "_ADOPT_S", 0.02)
    monkeypatch.setattr(module, "_BACKOFF_S", (0.002, 0.004))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, flush_rows=10)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def spool(settings: Settings) -> Iterator[Spool]:
    with Spool(settings.spool_dir / "mine", 2**20, 2**12) as made:
        yield made


@pytest.fixture
def writer(spool: Spool, log: Log, settings: Settings) -> EventWriter:
    return EventWriter(spool, log, Clock(), settings)


def events(*numbers: int) -> list[Interaction]:
    return [Interaction(f"e{number}", Kind.CLICK, "r", "u", "i", 0, 1.0, NOW, NOW) for number in numbers]


def names(count: int) -> list[str]:
    return [f"e{number}" for number in range(count)]


def leave_behind(settings: Settings, name: str, *numbers: int) -> Path:
    spool = Spool(settings.home / "elsewhere" / name, 2**20, 2**12)  # a running writer must not meet it half made
    spool.append(events(*numbers))
    spool.close()
    settings.spool_dir.mkdir(parents=True, exist_ok=True)
    return spool.folder.rename(settings.spool_dir / name)


def until(holds: Callable[[], Any]) -> None:
    for _ in range(2500):
        if holds():
            return
        time.sleep(0.002)
    raise AssertionError("it did not happen")


def test_drain_moves_everything_in_order_and_in_batches(spool: Spool, log: Log) -> None:
    spool.append(events(*range(25)))
    assert drain(spool, log, 10) == 25
    assert (log.ids, log.batches, spool.backlog_bytes) == (names(25), [10, 10, 5], 0)
    assert drain(spool, log, 10) == 0


def test_drain_stops_after_a_full_last_batch(spool: Spool, log: Log) -> None:
    spool.append(events(*range(20)))
    assert drain(spool, log, 10) == 20
    assert log.batches == [10, 10]


def test_what_the_store_did_not_take_stays_on_disk(spool: Spool, log: Log) -> None:
    spool.append(events(*range(5)))
    log.error = StoreUnavailableError("away")
    with pytest.raises(StoreUnavailableError):
        drain(spool, log, 10)
    assert spool.backlog_bytes > 0
    log.error = None
    assert drain(spool, log, 10) == 5
    assert log.ids == names(5)


def test_a_lost_answer_of_the_store_counts_nothing_twice(spool: Spool, log: Log) -> None:
    spool.append(events(*range(25)))
    log.commits_and_fails = 1
    with pytest.raises(StoreUnavailableError):
        drain(spool, log, 10)
    drain(spool, log, 10)
    assert log.ids == names(25)
    assert log.tables.duplicates == 10


def test_lines_that_are_no_records_do_not_hold_up_the_others(settings: Settings, log: Log) -> None:
    folder = leave_behind(settings, "torn", 0)
    with next(folder.glob("*.jsonl")).open("ab") as file:
        file.write(b"no record\n" * 30)
    with Spool(folder, 2**20, 2**12) as spool:
        spool.append(events(1))
        drain(spool, log, 10)
        assert (log.ids, spool.quarantined, spool.backlog_bytes) == (names(2), 30, 0)


def test_the_thread_stores_what_arrives_and_says_how_far_it_is(writer: EventWriter, spool: Spool, log: Log) -> None:
    writer.start()
    spool.append(events(*range(30)))
    until(lambda: log.ids == names(30))
    until(lambda: "mine" in log.tables.writers)
    assert writer.is_healthy
    writer.stop()
    assert log.tables.writers == {}, "a writer that ended holds nobody's watermark back"


def test_the_heartbeat_is_of_the_time_before_the_drain(spool: Spool, settings: Settings, log: Log) -> None:
    """What arrives while the store is written to is not promised by that heartbeat."""
    taken: list[datetime] = []
    clock = Clock()

    class Watching(Log):
        def append(self, records: Sequence[Record]) -> Ingested:
            taken.append(clock())
            return super().append(records)

        def heartbeat(self, writer: str, flushed_through: datetime) -> None:
            if taken:
                promised.append((flushed_through, taken[-1]))
            super().heartbeat(writer, flushed_through)

    promised: list[tuple[datetime, datetime]] = []
    spool.append(events(1))
    writer = EventWriter(spool, Watching(), clock, settings)
    writer.start()
    until(lambda: promised)
    writer.stop()
    flushed, stored = promised[0]
    assert flushed < stored


def test_no_heartbeat_while_the_store_takes_nothing(writer: EventWriter, spool: Spool, log: Log) -> None:
    spool.append(events(1))
    log.error = StoreUnavailableError("away")
    writer.start()
    until(lambda: not writer.is_healthy)
    assert log.tables.writers == {}
    assert writer.flushed_through is None
    log.error = None
    until(lambda: writer.is_healthy and log.ids == ["e1"] and writer.flushed_through is not None)
    writer.stop()


@pytest.mark.parametrize(
    "error", [StoreUnavailableError("away"), OSError(28, "no space left on device"), KeyError("a bug")], ids=repr
)
def test_whatever_goes_wrong_is_seen_and_tried_again(
    writer: EventWriter, spool: Spool, log: Log, error: Exception
) -> None:
    writer.start()
    log.error = error
    spool.append(events(*range(5)))
    until(lambda: not writer.is_healthy)
    log.error = None
    until(lambda: log.ids == names(5) and writer.is_healthy)
    writer.stop()


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), OSError(5, "input/output error")], ids=repr)
def test_stopping_during_an_outage_leaves_the_events_to_the_next_writer(
    settings: Settings, log: Log, error: Exception
) -> None:
    with Spool(settings.spool_dir / "mine", 2**20, 2**12) as spool:
        writer = EventWriter(spool, log, Clock(), settings)
        writer.start()
        log.error = error
        spool.append(events(*range(5)))
        writer.stop()
        assert spool.backlog_bytes > 0
    log.error = None
    assert adopt_orphans(settings, log) == 5
    assert log.ids == names(5)


def test_stopping_stores_what_was_accepted_at_the_last_moment(
    writer: EventWriter, spool: Spool, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IDLE_S", 60.0)
    writer.start()
    until(lambda: log.tables.writers)
    spool.append(events(*range(25)))
    writer.stop()
    assert log.ids == names(25)


def test_the_dead_are_adopted_and_forgotten(settings: Settings, log: Log) -> None:
    folders = [leave_behind(settings, f"dead{number}", number) for number in range(3)]
    log.heartbeat("dead1", NOW)
    assert adopt_orphans(settings, log) == 3
    assert sorted(log.ids) == names(3)
    assert not any(folder.exists() for folder in folders)
    assert log.tables.writers == {}
    assert adopt_orphans(settings, log) == 0


def test_the_living_are_left_alone(spool: Spool, settings: Settings, log: Log) -> None:
    spool.append(events(1))
    assert adopt_orphans(settings, log) == 0
    assert spool.folder.exists()
    assert log.ids == []


def test_an_adoption_that_fails_loses_nothing(settings: Settings, log: Log) -> None:
    folder = leave_behind(settings, "dead", *range(5))
    log.error = StoreUnavailableError("away")
    with pytest.raises(StoreUnavailableError):
        adopt_orphans(settings, log)
    assert folder.exists()
    log.error = None
    assert adopt_orphans(settings, log) == 5


def test_one_folder_that_cannot_be_read_does_not_keep_others_from_adoption(
    settings: Settings, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = leave_behind(settings, "a-broken", 0)
    leave_behind(settings, "b-sound", 1)

    def opened(folder: Path, *sizes: int) -> Spool:
        if folder == broken:
            raise PermissionError(13, "Permission denied")
        return Spool(folder, *sizes)

    monkeypatch.setattr(module, "Spool", opened)
    assert adopt_orphans(settings, log) == 1
    assert log.ids == ["e1"]
    assert broken.exists()


def test_a_running_writer_adopts_by_itself(writer: EventWriter, settings: Settings, log: Log) -> None:
    writer.start()
    folder = leave_behind(settings, "dead", *range(5))
    until(lambda: not folder.exists())
    writer.stop()
    assert log.ids == names(5)


def test_nothing_is_lost_or_doubled_while_outages_come_and_go(writer: EventWriter, spool: Spool, log: Log) -> None:
    writer.start()
    done = threading.Event()

    def trouble() -> None:
        while not done.wait(0.003):
            log.error = None if log.error else StoreUnavailableError("away")
            log.commits_and_fails = 1
        log.error, log.commits_and_fails = None, 0

    troublemaker = threading.Thread(target=trouble)
    troublemaker.start()
    for start in range(0, 300, 3):
        spool.append(events(start, start + 1, start + 2))
        time.sleep(0.001)
    done.set()
    troublemaker.join()
    until(lambda: len(log.ids) == 300)
    writer.stop()
    assert log.ids == names(300)
