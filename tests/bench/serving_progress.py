"""What the replicas say while they start: their lines in Ray's log folder, passed on as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from serving.replica_log import MARK

LOGS = Path("/tmp/ray/session_latest/logs/worker-*.err")  # noqa: S108 - where Ray itself writes


class ReplicaLog:
    """`with ReplicaLog(say):` says every line that a replica logs from now on, until the block ends."""

    def __init__(self, say: Callable[[str], None], logs: Path = LOGS, every_s: float = 1.0) -> None:
        self._say, self._logs, self._every_s = say, logs, every_s
        self._read: dict[Path, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._read = {path.resolve(): path.stat().st_size for path in self._files()}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._pass_on()

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._pass_on()

    def _files(self) -> list[Path]:
        return sorted(self._logs.parent.glob(self._logs.name))

    def _pass_on(self) -> None:
        for path in map(Path.resolve, self._files()):
            at = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(at)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[path] = at + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                if line.startswith(MARK):
                    self._say(line.removeprefix(MARK))
