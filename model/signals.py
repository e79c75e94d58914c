"""What is known of a user at the time of a request, before any model has looked at it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from model.catalogue import Catalogue
from model.errors import ModelError

Item = TypeVar("Item")
MAX_FEATURES = 64
MAX_CHARACTERS = 256
"""Of a profile: how many features, and how long a name or a value may be."""


@dataclass(frozen=True, slots=True)
class UserSignals(Generic[Item]):
    """The inputs of all pathways of one user; items are ids outside of the model and catalogue indices inside.

    history: everything the user met, oldest first. liked: what they rated positively, oldest first; part of the
    history at training, but need not be here. profile: feature -> value. user_id: where it is not empty, the context
    may be kept for the user's next request. A model without some pathway ignores its signal, so that one request can
    be answered by models of different pathways. Raises ModelError naming the field.
    """

    history: Sequence[Item]
    liked: Sequence[Item] = ()
    profile: Mapping[str, str] = field(default_factory=dict)
    user_id: str = ""

    def __post_init__(self) -> None:
        if len(self.profile) > MAX_FEATURES:
            raise ModelError(f"profile: at most {MAX_FEATURES} features, got {len(self.profile)}")
        for pair in self.profile.items():
            for text in pair:
                if not isinstance(text, str) or not 0 < len(text) <= MAX_CHARACTERS:
                    raise ModelError(f"profile: expected 1 to {MAX_CHARACTERS} characters, got {text!r:.40}")

    @property
    def met(self) -> list[Item]:
        """Every item of the history or the liked ones, once."""
        return list(dict.fromkeys([*self.history, *self.liked]))


Request = Sequence[Item] | UserSignals[Item]
"""A history alone, oldest first, or all signals."""


def signals_of(request: Request[Item]) -> UserSignals[Item]:
    """The signals themselves, or those of a history alone."""
    return request if isinstance(request, UserSignals) else UserSignals(request)


def indexed(signals: UserSignals[str], catalogue: Catalogue) -> UserSignals[int]:
    """Ids become indices. Raises ModelError naming the first unknown item."""
    history, liked = catalogue.indices(signals.history), catalogue.indices(signals.liked)
    return UserSignals(history, liked, signals.profile, signals.user_id)


def profile_buckets(profile: Mapping[str, str], count: int) -> list[int]:
    """The hash bucket in 0..count-1 of each feature with its value, ascending, each once; [] where count is 0.

    The same on every machine and in every process, unlike Python's own hash.
    """
    if not count:
        return []
    return sorted({_bucket(name, value) % count for name, value in profile.items()})


def _bucket(name: str, value: str) -> int:
    pair = json.dumps([name, value]).encode()
    return int.from_bytes(hashlib.blake2b(pair, digest_size=8).digest(), "big")
