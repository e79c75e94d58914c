"""From the spool to the SQL store, in a thread: at least once, which the store's keys make exactly once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from experiment.errors import StoreUnavailableError
from experiment.ports import EventLog
from serving.settings import Settings
from serving.spool import Spool, orphans

_log = logging.getLogger(__name__)

_IDLE_S = 0.1
_HEARTBEAT_S = 0.5
_ADOPT_S = 10.0
_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class EventWriter:
    """Owns the reading end of one spool, and adopts the spools of writers that died on this machine.

    low_watermark: see `Inbox.low_watermark`; it becomes the heartbeat once everything before it is stored.
    """

    def __init__(
        self,
        spool: Spool,
        log: EventLog,
        low_watermark: Callable[[], datetime],
        settings: Settings,
    ) -> None:
        self._spool, self._event_log, self._low_watermark = spool, log, low_watermark
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="event-writer", daemon=True)
        self._failures = 0
        self.flushed_through: datetime | None = None

    @property
    def name(self) -> str:
        return self._spool.folder.name

    @property
    def is_healthy(self) -> bool:
        """Whether the last attempt to bring events into the SQL store succeeded."""
        return self._failures == 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Store what is left if the SQL store answers, and end. What it does not take stays on disk for an adopter."""
        self._stop.set()
        self._thread.join()
        try:
            drain(self._spool, self._event_log, self._settings.flush_rows)
            self._event_log.retire(self.name)
        except Exception as error:  # a writer that ends must not keep the rest of the service from ending
            unforeseen = None if isinstance(error, StoreUnavailableError) else error
            left = self._spool.backlog_bytes
            _log.warning("%d bytes of events stay in %s: %s", left, self._spool.folder, error, exc_info=unforeseen)

    def _run(self) -> None:
        since_heartbeat = since_adoption = _ADOPT_S
        while not self._stop.is_set():
            try:
                low = self._low_watermark()
                moved = drain(self._spool, self._event_log, self._settings.flush_rows)
                since_heartbeat += _IDLE_S
                if moved or since_heartbeat >= _HEARTBEAT_S:
                    self._event_log.heartbeat(self.name, low)
                    self.flushed_through, since_heartbeat = low, 0.0
                since_adoption += _IDLE_S
                if since_adoption >= _ADOPT_S:
                    adopt_orphans(self._settings, self._event_log)
                    since_adoption = 0.0
                self._failures = 0
                self._stop.wait(_IDLE_S)
            except Exception as error:  # whatever it is, events that nobody stores any more would be worse
                pause = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
                self._failures += 1
                unforeseen = None if isinstance(error, StoreUnavailableError) else error
                _log.warning("%s; trying again in %.1f s", error, pause, exc_info=unforeseen)
                self._stop.wait(pause)


def drain(spool: Spool, log: EventLog, rows: int) -> int:
    """Store everything that is in the spool now; returns the number of records. Raises StoreUnavailableError."""
    moved = 0
    before = None
    while True:
        records, position = spool.read(rows)
        if position == before:
            return moved
        if records:
            log.append(records)
        spool.advance(position)
        moved += len(records)
        before = position
        if len(records) < rows:
            return moved


def adopt_orphans(settings: Settings, log: EventLog) -> int:
    """Store what dead writers left on this machine and remove their folders; returns the number of records."""
    moved = 0
    for folder in orphans(settings.spool_dir):
        try:
            moved += _adopt(folder, settings, log)
        except OSError:
            _log.exception("%s cannot be adopted; its events stay there", folder)
    return moved


def _adopt(folder: Path, settings: Settings, log: EventLog) -> int:
    try:
        spool = Spool(folder, settings.spool_max_bytes, settings.spool_segment_bytes)
    except BlockingIOError:
        return 0  # another writer was faster
    stored = False
    try:
        moved = drain(spool, log, settings.flush_rows)
        log.retire(folder.name)
        stored = True
    finally:
        spool.close(remove=stored)
    _log.info("adopted %d records of %s", moved, folder.name)
    return moved
