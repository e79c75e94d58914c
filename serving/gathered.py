"""From logged slates to lessons: the border between what users did and what a model can learn from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from experiment.feedback import LoggedSlate, ShownItem, Span
from model.catalogue import Catalogue
from model.config import OneRecConfig
from model.data import FloatArray
from model.lessons import LessonBook, Lessons
from model.reward import WatchHistory, engagement
from model.signals import profile_buckets

KEPT_WATCHES = 2000
"""The newest watches of a user that the next ones are compared with."""

ANY_DURATION_S = 1.0
"""Where no durations are known at all, every item has this one: a single bucket."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """Lessons, and what became of the log on the way to them.

    slates: requests learned from, of all that were `read`. shown: items that their users saw. unknown_items and
    unknown_history (liked ones among them): those that the catalogue lacks; they are left out. without_duration: items
    that the given durations lack; they are learned from only where they were disliked. scored: items with watches to
    compare with. disliked: explicit dislikes. watch_s: of everything shown. newest: when the last request learned from
    came.
    """

    lessons: Lessons
    read: int
    slates: int
    shown: int
    scored: int
    disliked: int
    watch_s: float
    unknown_items: int
    unknown_history: int
    without_duration: int
    newest: datetime | None


class _Watched:
    """What one user has watched so far, in the order of time; anew for the next user."""

    def __init__(self) -> None:
        self._user: str | None = None
        self._watches: deque[tuple[float, float]] = deque(maxlen=KEPT_WATCHES)

    def of(self, user_id: str) -> WatchHistory:
        if user_id != self._user:
            self._user = user_id
            self._watches.clear()
        known = np.array(self._watches, dtype=np.float64).reshape(-1, 2)
        return WatchHistory(known[:, 0], known[:, 1])

    def add(self, duration_s: float, played_s: float) -> None:
        self._watches.append((duration_s, played_s))


def gather(
    slates: Iterable[LoggedSlate],
    catalogue: Catalogue,
    learn_from: Span,
    durations: Mapping[str, float] | None,
    config: OneRecConfig,
    advance: Callable[[int], None] = lambda _slates: None,
) -> Gathered:
    """Whole users one after the other, each in the order of time -> lessons from the slates in `learn_from`.

    An item's score is the percentile of its playing time among what the same user watched in earlier requests, of like
    duration, whoever showed it (`model.reward.engagement`); an item that was seen and not played scores 0 there. A
    dislike is a DISMISS. Likes and clicks have no part in the paper's reward and have none here. config: of the model
    that is to learn; what it has no pathway for is not kept.
    """
    book, watched = LessonBook(), _Watched()
    counts = dict.fromkeys(("read", "slates", "shown", "scored", "disliked"), 0)
    lacking = dict.fromkeys(("unknown_items", "unknown_history", "without_duration"), 0)
    watch_s, newest = 0.0, None
    for slate in slates:
        counts["read"] += 1
        before = watched.of(slate.user_id)
        seen = [item for item in slate.items if item.seen]
        known = [item for item in seen if item.item_id in catalogue]
        seconds = [_duration_s(item, durations) for item in seen]
        for item, duration_s in zip(seen, seconds, strict=True):
            if item.watch_s > 0 and duration_s is not None:
                watched.add(duration_s, item.watch_s)
        if slate in learn_from:
            history, liked = (
                [catalogue.index_of(item) for item in items if item in catalogue]
                for items in (slate.history, slate.liked)
            )
            positive = liked[-config.positive_len :] if config.positive_len else []
            features = profile_buckets(dict(slate.profile), config.profile_features)
            book.open(history[-config.context_len :], positive, features)
            scores = _scores(before, known, durations)
            for item, score in zip(known, scores.tolist(), strict=True):
                book.add(catalogue.index_of(item.item_id), item.score, score, item.dismissed)
            counts["slates"] += 1
            counts["shown"] += len(seen)
            counts["scored"] += int((~np.isnan(scores)).sum())
            counts["disliked"] += sum(item.dismissed for item in known)
            lacking["unknown_items"] += len(seen) - len(known)
            lacking["unknown_history"] += len(slate.history) - len(history) + len(slate.liked) - len(liked)
            lacking["without_duration"] += seconds.count(None)
            watch_s += sum(item.watch_s for item in seen)
            newest = slate.received_at if newest is None else max(newest, slate.received_at)
        advance(counts["read"])
    return Gathered(lessons=book.lessons(), watch_s=watch_s, newest=newest, **counts, **lacking)


def _duration_s(item: ShownItem, durations: Mapping[str, float] | None) -> float | None:
    return ANY_DURATION_S if durations is None else durations.get(item.item_id)


def _scores(before: WatchHistory, items: list[ShownItem], durations: Mapping[str, float] | None) -> FloatArray:
    """q of each item, NaN where its duration is unknown or nothing of like duration was watched before."""
    scores = np.full(len(items), np.nan)
    seconds = [_duration_s(item, durations) for item in items]
    places = [place for place, duration_s in enumerate(seconds) if duration_s is not None]
    duration = np.array([seconds[place] for place in places], dtype=np.float64)
    played = np.array([items[place].watch_s for place in places], dtype=np.float64)
    scores[places] = engagement(before, duration, played)
    return scores
