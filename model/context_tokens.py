"""Which items stand where in the context, before any of them is encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import OneRecConfig
from model.signals import UserSignals, profile_buckets


@dataclass(frozen=True, slots=True, eq=False)
class ContextTokens:
    """The items of a batch of contexts, each pathway newest first; the profile token is not among them.

    items, valid [B, T]: catalogue indices, and which of them are there (an index that is not is any). places [T] or
    [B, T]: where in the sequence each stands, see `ContextProcessor.place_table`; None: 0, 1, ... features [B, F]:
    buckets of profile features, padded with -1; None: none.
    """

    items: Tensor
    valid: Tensor
    places: Tensor | None = None
    features: Tensor | None = None

    def to(self, device: torch.device) -> ContextTokens:
        """The same on `device`."""
        places = None if self.places is None else self.places.to(device)
        features = None if self.features is None else self.features.to(device)
        return ContextTokens(self.items.to(device), self.valid.to(device), places, features)


@dataclass(frozen=True, slots=True)
class UserTokens:
    """One user's: all that a model reads of the signals, so what it does not read cannot tell two of them apart.

    items: of the history newest first, then of the liked ones newest first; from_history: how many are the former;
    features: buckets.
    """

    items: list[int]
    from_history: int
    features: list[int]

    @classmethod
    def of(cls, signals: UserSignals[int], config: OneRecConfig) -> UserTokens:
        """The newest items of each pathway."""
        history, liked = list(signals.history), list(signals.liked)
        newest = history[-config.context_len :][::-1]
        positive = liked[-config.positive_len :][::-1] if config.positive_len else []
        return cls(newest + positive, len(newest), profile_buckets(signals.profile, config.profile_features))

    def digest(self, model: str) -> bytes:
        """32 bytes that differ when a context of the model with that digest would."""
        head = f"{model}|{self.from_history}|{self.features}|".encode()
        return hashlib.sha256(head + torch.tensor(self.items, dtype=torch.int64).numpy().tobytes()).digest()


def newest(items: Tensor, begin: Tensor, end: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """items[begin : end] of each row, newest first: (items [B, N], valid [B, N]), 1 <= N <= `length`."""
    back = end[:, None] - 1 - torch.arange(length)
    valid = back >= begin[:, None]
    longest = max(1, int(valid.any(0).sum()))
    back, valid = back[:, :longest], valid[:, :longest]
    some = items if items.numel() else items.new_zeros(1)  # where nobody liked anything
    return some[back.clamp_min(0)], valid


def side_by_side(
    history: tuple[Tensor, Tensor],
    liked: tuple[Tensor, Tensor] | None,
    context_len: int,
    features: Tensor | None,
) -> ContextTokens:
    """A batch of histories and, behind their padding, what is liked: (items [B, N], valid [B, N]) of `newest` each."""
    if liked is None:
        return ContextTokens(*history, features=features)
    items, valid = (torch.cat(pair, dim=1) for pair in zip(history, liked, strict=True))
    of_history, of_liked = history[0].shape[1], liked[0].shape[1]
    places = torch.cat([torch.arange(of_history), context_len + torch.arange(of_liked)])
    return ContextTokens(items, valid, places, features)


def packed(users: Sequence[UserTokens], config: OneRecConfig, device: torch.device) -> ContextTokens:
    """A batch of at least one user: all that is there comes first in each row, then the padding.

    Whoever reads keys up to a length, as the engine does, may so take the number of valid tokens for it.
    """
    items = padded([user.items for user in users], device)
    features = padded([user.features for user in users], device) if config.profile_features else None
    places = padded([_places(user, config) for user in users], device).clamp_min(0) if config.positive_len else None
    return ContextTokens(items.clamp_min(0), items >= 0, places, features)


def _places(user: UserTokens, config: OneRecConfig) -> list[int]:
    positive = len(user.items) - user.from_history
    return [*range(user.from_history), *range(config.context_len, config.context_len + positive)]


def padded(rows: Sequence[list[int]], device: torch.device) -> Tensor:
    """[B, longest], -1 where a row has ended."""
    longest = max(len(row) for row in rows)
    flat = [[*row, *([-1] * (longest - len(row)))] for row in rows]
    return torch.tensor(flat, dtype=torch.int64, device=device).view(len(rows), longest)
