"""A durable queue on local disk: what `append` returned for survives the process, and is read back in order.

    <root>/<writer>/lock                held while the owner lives; a folder whose lock is free is an orphan
    <root>/<writer>/00000001.jsonl      segments, one JSON record a line, only ever appended to
    <root>/<writer>/offset              "segment byte" up to which everything is in the SQL store
    <root>/quarantine-<writer>.jsonl    lines that are no records: set aside and counted, nothing else is lost

One process owns a folder. Appending and reading may happen in different threads.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from experiment.events import Record, from_dict, to_dict
from serving.errors import SpoolFullError


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two records."""

    segment: int
    byte: int


class Spool:
    """One writer's folder. Raises BlockingIOError when another living process owns it."""

    def __init__(self, folder: Path, max_bytes: int, segment_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._max_bytes, self._segment_bytes = max_bytes, segment_bytes
        self._lock_file = (folder / "lock").open("a")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock_file.close()
            raise
        self._guard = threading.Lock()
        self._done = self._read_offset()
        last = max((int(path.stem) for path in self._segments()), default=self._done.segment)
        self._segment = last + 1  # never append behind a line that a crash may have torn
        self._file = self._open_segment()
        self._backlog = sum(path.stat().st_size for path in self._segments()) - self._done.byte
        self.quarantined = 0

    @property
    def backlog_bytes(self) -> int:
        """What is on disk and not yet in the SQL store."""
        return self._backlog

    def append(self, records: Sequence[Record]) -> None:
        """Write the records and wait until they are on the disk. Raises SpoolFullError and writes nothing then."""
        lines = b"".join(json.dumps(to_dict(record), separators=(",", ":")).encode() + b"\n" for record in records)
        with self._guard:
            if self._backlog + len(lines) > self._max_bytes:
                raise SpoolFullError(f"{self._backlog:,} bytes of events wait for the SQL store")
            self._write_all(lines)
            self._backlog += len(lines)
            if os.lseek(self._file, 0, os.SEEK_CUR) >= self._segment_bytes:
                os.close(self._file)
                self._segment += 1
                self._file = self._open_segment()

    def _write_all(self, lines: bytes) -> None:
        """All of the lines on the disk, or none of them and SpoolFullError."""
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, lines) == len(lines):
                os.fdatasync(self._file)
                return
            reason = "the disk took only a part of a write"
        except OSError as error:
            reason = str(error)
        os.ftruncate(self._file, before)
        raise SpoolFullError(f"events cannot be written to disk: {reason}")

    def read(self, limit: int) -> tuple[list[Record], Position]:
        """At most `limit` records after the last `advance`, and the position behind them."""
        records: list[Record] = []
        position = self._done
        for segment, start, line in self._lines():
            position = Position(segment, start + len(line))
            record = self._parse(line)
            if record is not None:
                records.append(record)
            if len(records) >= limit:
                break
        return records, position

    def advance(self, position: Position) -> None:
        """Everything before `position` is in the SQL store: remember that durably and drop finished segments."""
        if position == self._done:
            return
        temporary = self.folder / "offset.new"
        with temporary.open("w", encoding="ascii") as file:
            file.write(f"{position.segment} {position.byte}")
            file.flush()
            os.fdatasync(file.fileno())
        temporary.replace(self.folder / "offset")
        with self._guard:
            self._done = position
            for path in self._segments():
                if int(path.stem) < position.segment:
                    path.unlink()
            self._backlog = sum(path.stat().st_size for path in self._segments()) - position.byte

    def close(self, *, remove: bool = False) -> None:
        """Give the folder up; `remove` deletes it, which is only right when it is empty for good."""
        os.close(self._file)
        if remove:
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()
        self._lock_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(segment, byte, line) of every complete line; the end of the segment being written is as of now."""
        done = self._done
        for path in self._segments():
            segment = int(path.stem)
            if segment < done.segment:
                continue
            with path.open("rb") as file:
                start = file.seek(done.byte if segment == done.segment else 0)
                for line in file:
                    if not line.endswith(b"\n") and segment == self._segment:
                        return  # still being written
                    yield segment, start, line
                    start += len(line)

    def _parse(self, line: bytes) -> Record | None:
        try:
            return from_dict(dict(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError):
            self.quarantined += 1
            with self.folder.with_name(f"quarantine-{self.folder.name}.jsonl").open("ab") as file:
                file.write(line.rstrip(b"\n") + b"\n")
            return None

    def _segments(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.jsonl") if path.stem.isdigit())

    def _open_segment(self) -> int:
        path = self.folder / f"{self._segment:08d}.jsonl"
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def _read_offset(self) -> Position:
        try:
            segment, byte = (self.folder / "offset").read_text(encoding="ascii").split()
        except FileNotFoundError:
            return Position(0, 0)
        return Position(int(segment), int(byte))


def orphans(root: Path) -> list[Path]:
    """Folders of writers that no longer live; adopt them by opening a Spool on them."""
    return [path for path in sorted(root.glob("*")) if path.is_dir() and not _is_locked(path / "lock")]


def _is_locked(path: Path) -> bool:
    try:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return True
    return False
