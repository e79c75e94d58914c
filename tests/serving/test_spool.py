"""The durable spool: what was acknowledged survives anything, once, in order."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import pytest

from experiment.events import Interaction, Kind, Served
from serving.errors import SpoolFullError
from serving.spool import Spool, orphans

NOW = datetime(2026, 11, 23, tzinfo=UTC)
CHILD = """
import sys
from pathlib import Path
from tests.serving.test_spool import event
from serving.spool import Spool

spool = Spool(Path(sys.argv[1]), 2**26, 4096)
for number in range(10**6):
    spool.append([event(2 * number), event(2 * number + 1)])
    print(2 * number + 1, flush=True)
"""


def event(number: int) -> Interaction:
    return Interaction(f"e{number}", Kind.CLICK, "r1", "u1", "i1", 0, 1.0, NOW, NOW)


def open_spool(folder: Path, max_bytes: int = 2**20, segment_bytes: int = 2**12) -> Spool:
    return Spool(folder, max_bytes, segment_bytes)


def drained(spool: Spool, limit: int = 100) -> list[str]:
    ids: list[str] = []
    while True:
        records, position = spool.read(limit)
        if not records:
            return ids
        ids += [record.event_id for record in records if isinstance(record, Interaction)]
        spool.advance(position)


def test_records_come_back_in_order_over_many_segments(tmp_path: Path) -> None:
    with open_spool(tmp_path / "w") as spool:
        for number in range(0, 300, 3):
            spool.append([event(number), event(number + 1), event(number + 2)])
        assert len(list(spool.folder.glob("*.jsonl"))) > 5
        assert drained(spool, 7) == [f"e{number}" for number in range(300)]
        assert spool.backlog_bytes == 0
        assert len(list(spool.folder.glob("*.jsonl"))) == 1, "finished segments are gone"


def test_a_request_that_an_older_version_left_behind_is_read_without_a_slate(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    old = (
        '{"type":"served","request_id":"r","user_id":"u","experiment":null,"run":null,"arm":null,"bucket":null,'
        '"phase":null,"served_variant":"bf16","table_version":1,"reason":"DEFAULT","fallback":null,"failed":false,'
        '"slow":false,"forced":false,"latency_ms":5.0,"received_at":"2026-11-23T00:00:00+00:00"}'
    )
    (tmp_path / "w" / "00000001.jsonl").write_text(old + "\n")
    with open_spool(tmp_path / "w") as spool:
        (found,), _ = spool.read(10)
        assert isinstance(found, Served)
        assert (found.request_id, found.history, found.slate, spool.quarantined) == ("r", (), (), 0)


def test_what_was_not_advanced_is_read_again_after_a_restart(tmp_path: Path) -> None:
    with open_spool(tmp_path / "w") as spool:
        spool.append([event(number) for number in range(10)])
        records, position = spool.read(4)
        spool.advance(position)
        assert len(records) == 4
        spool.read(4)
    with open_spool(tmp_path / "w") as again:
        assert drained(again) == [f"e{number}" for number in range(4, 10)]


def test_a_full_spool_takes_nothing_of_what_it_refuses(tmp_path: Path) -> None:
    with open_spool(tmp_path / "w", max_bytes=1000) as spool:
        spool.append([event(0)])
        with pytest.raises(SpoolFullError, match="wait for the SQL store"):
            spool.append([event(number) for number in range(1, 20)])
        assert drained(spool) == ["e0"]
        spool.append([event(99)])
        assert drained(spool) == ["e99"]


def test_a_disk_that_takes_half_a_write_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with open_spool(tmp_path / "w") as spool:
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
        with pytest.raises(SpoolFullError, match="only a part"):
            spool.append([event(1)])
        monkeypatch.undo()
        spool.append([event(2)])
        assert drained(spool) == ["e2"]


def test_nothing_that_was_acknowledged_is_lost_by_kill_dash_nine(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(50)]
    child.send_signal(signal.SIGKILL)
    said += child.stdout.read().splitlines(keepends=True)
    acknowledged = int([line for line in said if line.endswith("\n")][-1])
    child.wait()
    assert orphans(tmp_path) == [folder]
    with open_spool(folder) as spool:
        found = drained(spool)
    assert found[: acknowledged + 1] == [f"e{number}" for number in range(acknowledged + 1)]
    assert len(found) == len(set(found))


def test_a_torn_last_line_is_set_aside_and_nothing_else_is_lost(tmp_path: Path) -> None:
    with open_spool(tmp_path / "w") as spool:
        spool.append([event(0)])
    segment = next((tmp_path / "w").glob("*.jsonl"))
    with segment.open("ab") as file:
        file.write(b'{"type": "interaction", "event_id": "tor')
    with open_spool(tmp_path / "w") as again:
        again.append([event(1)])
        assert drained(again) == ["e0", "e1"]
        assert again.quarantined == 1
    assert b"tor" in (tmp_path / "quarantine-w.jsonl").read_bytes()


@pytest.mark.parametrize(
    "line", [b"[]", b"{}", b'{"type": "interaction"}', b"\xff\xfe", b"null", b'{"type": "served"}']
)
def test_a_line_that_is_no_record_does_not_hold_up_the_others(tmp_path: Path, line: bytes) -> None:
    with open_spool(tmp_path / "w") as spool:
        spool.append([event(0)])
        next(spool.folder.glob("*.jsonl")).open("ab").write(line + b"\n")
        spool.append([event(1)])
        assert drained(spool) == ["e0", "e1"]
        assert spool.quarantined == 1


def test_a_folder_has_one_owner_and_orphans_are_adopted_once(tmp_path: Path) -> None:
    with open_spool(tmp_path / "w"):
        with pytest.raises(BlockingIOError):
            open_spool(tmp_path / "w")
        assert orphans(tmp_path) == []
    assert orphans(tmp_path) == [tmp_path / "w"]

    def adopt(_: int) -> bool:
        try:
            spool = open_spool(tmp_path / "w")
        except BlockingIOError:
            return False
        time.sleep(0.2)
        spool.close(remove=True)
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(adopt, range(2))) == [False, True]
    assert orphans(tmp_path) == []


def test_a_reader_never_sees_a_line_that_is_still_being_written(tmp_path: Path) -> None:
    with open_spool(tmp_path / "w", segment_bytes=2**20) as spool:
        spool.append([event(0)])
        with next(spool.folder.glob("*.jsonl")).open("ab") as file:
            file.write(b'{"type": "interaction", "event_id"')
            file.flush()
            assert drained(spool) == ["e0"]
            assert spool.quarantined == 0


def test_the_file_holds_plain_json_lines(tmp_path: Path) -> None:
    with open_spool(tmp_path / "w") as spool:
        spool.append([event(3)])
        (line,) = next(spool.folder.glob("*.jsonl")).read_text().splitlines()
        assert json.loads(line)["event_id"] == "e3"


def test_lines_that_a_failing_disk_takes_back_were_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_spool(tmp_path / "w") as spool:
        spool.append([event(0)])
        assert drained(spool) == ["e0"]

        def fail(_file: int) -> None:
            monkeypatch.undo()
            assert drained(spool) == [], "visible in the file, but not durable yet"
            raise OSError(errno.EIO, "broken disk")

        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(SpoolFullError, match="broken disk"):
            spool.append([event(1)])
        spool.append([event(2)])
        assert drained(spool) == ["e2"]


def test_a_disk_without_room_for_a_new_segment_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    with open_spool(tmp_path / "w", segment_bytes=500) as spool:
        monkeypatch.setattr(os, "open", full)
        for number in range(10):
            spool.append([event(number)])
        monkeypatch.undo()
        assert len(list(spool.folder.glob("*.jsonl"))) == 1
        spool.append([event(10)])
        assert len(list(spool.folder.glob("*.jsonl"))) == 2
        assert drained(spool) == [f"e{number}" for number in range(11)]


def test_an_unreadable_offset_reads_everything_again(tmp_path: Path) -> None:
    with open_spool(tmp_path / "w") as spool:
        spool.append([event(0), event(1)])
        spool.advance(spool.read(1)[1])
    (tmp_path / "w" / "offset").write_text("?")
    with open_spool(tmp_path / "w") as spool:
        assert drained(spool) == ["e0", "e1"]


def test_segments_that_a_crash_left_behind_the_offset_are_no_backlog(tmp_path: Path) -> None:
    with open_spool(tmp_path / "w", segment_bytes=100) as spool:
        spool.append([event(0)])
        first = min(spool.folder.glob("*.jsonl"))
        content = first.read_bytes()
        assert drained(spool) == ["e0"]
        spool.append([event(1)])
        assert drained(spool) == ["e1"]
    first.write_bytes(content)
    with open_spool(tmp_path / "w") as spool:
        assert spool.backlog_bytes == 0
        assert drained(spool) == []


def test_who_waited_for_a_folder_that_was_removed_does_not_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, lock = open_spool(tmp_path / "w"), fcntl.flock

    def lock_too_late(file: IO[str], how: int) -> None:
        owner.close(remove=True)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", lock_too_late)
    with pytest.raises(BlockingIOError, match="is gone"):
        open_spool(tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


def test_nobody_adopts_a_folder_that_its_owner_is_just_making(tmp_path: Path) -> None:
    stop = threading.Event()

    def adopt() -> None:
        while not stop.is_set():
            for folder in orphans(tmp_path):
                with suppress(BlockingIOError):
                    Spool(folder, 2**20, 4096).close(remove=True)

    with ThreadPoolExecutor(1) as pool:
        adopter = pool.submit(adopt)
        try:
            for number in range(300):
                Spool(tmp_path / f"writer-{number}", 2**20, 4096).close(remove=True)
        finally:
            stop.set()
        adopter.result()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_being_removed_is_nobodys_orphan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, unlink, seen = open_spool(tmp_path / "w"), Path.unlink, []

    def look(path: Path) -> None:
        seen.append(orphans(tmp_path))
        unlink(path)

    monkeypatch.setattr(Path, "unlink", look)
    spool.close(remove=True)
    assert seen
    assert not any(seen)
    assert list(tmp_path.iterdir()) == []
