"""Logged feedback from the in-memory tables."""

from __future__ import annotations

from collections.abc import Iterator

from experiment.events import Served
from experiment.feedback import LoggedSlate, Span, logged_slate
from experiment.store.memory import MemoryTables


class MemoryFeedbackLog:
    """`FeedbackLog` over `MemoryTables`."""

    def __init__(self, tables: MemoryTables) -> None:
        self._tables = tables

    def count(self, span: Span) -> int:
        """See `FeedbackLog.count`."""
        return len(self._served(span))

    def read(self, span: Span) -> Iterator[LoggedSlate]:
        """See `FeedbackLog.read`."""
        tables = self._tables
        with tables.lock:
            slates = [
                logged_slate(
                    served,
                    [
                        (tables.interactions[event], tables.statuses[event])
                        for event in tables.events_of[served.request_id]
                    ],
                )
                for served in self._served(span)
            ]
        yield from slates

    def _served(self, span: Span) -> list[Served]:
        with self._tables.lock:
            found = [served for served in self._tables.served.values() if served.slate and served in span]
        return sorted(found, key=lambda served: (served.user_id, served.received_at, served.request_id))
