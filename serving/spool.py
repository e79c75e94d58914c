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
from typing import IO, Self

from experiment.events import Record, from_dict, to_dict
from serving.errors import SpoolFullError


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two records."""

    segment: int
    byte: int


class Spool:
    """One writer's folder. Raises BlockingIOError when another living process owns it, or has just removed it."""

    def __init__(self, folder: Path, max_bytes: int, segment_bytes: int) -> None:
        self.folder = folder
        self._max_bytes, self._segment_bytes = max_bytes, segment_bytes
        self._lock_file = _locked_new(folder) or _locked(folder)
        self._guard = threading.Lock()
        self._done = self._read_offset()
        last = max((int(path.stem) for path in self._segments()), default=self._done.segment)
        self._durable = Position(last + 1, 0)  # never append behind a line that a crash may have torn
        self._file = self._open_segment(self._durable.segment)
        self._backlog = self._bytes_after(self._done)
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
            self._durable = Position(self._durable.segment, self._write_all(lines))
            self._backlog += len(lines)
            if self._durable.byte >= self._segment_bytes:
                self._rotate()

    def _write_all(self, lines: bytes) -> int:
        """All of the lines on the disk, or none of them and SpoolFullError; returns where they end."""
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, lines) == len(lines):
                os.fdatasync(self._file)
                return before + len(lines)
            reason = "the disk took only a part of a write"
        except OSError as error:
            reason = str(error)
        os.ftruncate(self._file, before)
        raise SpoolFullError(f"events cannot be written to disk: {reason}")

    def _rotate(self) -> None:
        """Begin the next segment. When the disk has no room for it, this one just grows: its records are durable."""
        try:
            fresh = self._open_segment(self._durable.segment + 1)
        except OSError:
            return
        os.close(self._file)
        self._file, self._durable = fresh, Position(self._durable.segment + 1, 0)

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
            self._backlog = self._bytes_after(position)

    def close(self, *, remove: bool = False) -> None:
        """Give the folder up; `remove` deletes it, which is only right when it is empty for good."""
        os.close(self._file)
        if remove:  # under another name, where nobody looks for an orphan while it is taken apart
            hidden = self.folder.rename(self.folder.with_name(f".{self.folder.name}-{os.getpid()}-{id(self)}"))
            for path in hidden.iterdir():
                path.unlink()
            hidden.rmdir()
        self._lock_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(segment, byte, line) of every line that is durable now; what is still being written may be taken back."""
        done, durable = self._done, self._durable
        for path in self._segments():
            segment = int(path.stem)
            if segment < done.segment:
                continue
            with path.open("rb") as file:
                start = file.seek(done.byte if segment == done.segment else 0)
                for line in file:
                    if (segment, start + len(line)) > (durable.segment, durable.byte):
                        return
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

    def _bytes_after(self, position: Position) -> int:
        sizes = (path.stat().st_size for path in self._segments() if int(path.stem) >= position.segment)
        return sum(sizes) - position.byte

    def _open_segment(self, number: int) -> int:
        """A new file, whose name is on the disk, too."""
        path = self.folder / f"{number:08d}.jsonl"
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return file

    def _read_offset(self) -> Position:
        """Where to go on; from the start when the file says nothing, for the store knows what it has."""
        try:
            segment, byte = map(int, (self.folder / "offset").read_text(encoding="ascii").split())
        except (FileNotFoundError, ValueError):
            return Position(0, 0)
        return Position(segment, byte)


def orphans(root: Path) -> list[Path]:
    """Folders of writers that no longer live; adopt them by opening a Spool on them."""
    folders = (path for path in sorted(root.glob("*")) if path.is_dir() and not path.name.startswith("."))
    return [path for path in folders if not _is_locked(path)]


def _is_locked(folder: Path) -> bool:
    try:
        _locked(folder).close()
    except BlockingIOError:
        return True
    return False


def _locked_new(folder: Path) -> IO[str] | None:
    """Make the folder and hold its lock before anybody can see it, or adopt it; None when it is there already."""
    if folder.exists():
        return None
    hidden = folder.with_name(f".{folder.name}-{os.getpid()}-{threading.get_ident()}")
    hidden.mkdir(parents=True)
    file = _locked(hidden)
    try:
        hidden.rename(folder)
    except OSError:  # somebody made it in between
        (hidden / "lock").unlink()
        hidden.rmdir()
        file.close()
        if not folder.exists():
            raise
        return None
    return file


def _locked(folder: Path) -> IO[str]:
    """The folder's lock, held until it is closed. Raises BlockingIOError: another holds it, or the folder is gone."""
    try:
        file = (folder / "lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), (folder / "lock").stat()):
                raise BlockingIOError(f"{folder} is another one by now")
        except OSError:
            file.close()
            raise
    except FileNotFoundError as error:
        raise BlockingIOError(f"{folder} is gone") from error
    return file
