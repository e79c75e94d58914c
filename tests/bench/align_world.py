"""A world of simulated viewers whose tastes are known, to align a policy in: a feed that plays what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.data import FloatArray, IntArray
from model.split import Split

DURATIONS_S = (10.0, 600.0)
DISMISSED = 0.5
"""How often an item is dismissed that its viewer does not like at all."""


@dataclass(frozen=True, slots=True)
class Viewing:
    """What one viewer did with one item that was shown to them."""

    played_s: float
    dismissed: bool


class World:
    """Every viewer plays each shown item for a share of its duration; the mean share is how much they like it.

    liking [users, items] in (0, 1) = sigmoid(match + appeal): match says how well an item's genres fit those of the
    user's training history, appeal is the item's own and in nobody's history. So a policy that was trained on histories
    knows a part of what viewers like, and can learn the rest from feedback only. Durations are log-uniform and
    independent of liking: playing times alone say more about an item's length than about its viewer.
    """

    def __init__(
        self, split: Split, seed: int, durations_s: tuple[float, float] = DURATIONS_S, appeal_sd: float = 1.0
    ) -> None:
        rng = np.random.default_rng(seed)
        n_items = split.n_items
        self.duration_s = np.exp(rng.uniform(*np.log(durations_s), n_items)).round(1)
        appeal = rng.normal(0.0, appeal_sd, n_items)
        self.liking: FloatArray = 1.0 / (1.0 + np.exp(-(_match(split) + appeal)))

    def watch(self, user: int, items: Sequence[int], rng: np.random.Generator) -> list[Viewing]:
        """What the viewer does with a slate. The share that is played is beta distributed around their liking; what
        they hardly like they dismiss now and then."""
        likings = self.liking[user, list(items)]
        shares = rng.beta(4.0 * likings, 4.0 * (1.0 - likings))
        dismissed = rng.random(len(items)) < DISMISSED * (1.0 - likings) ** 4
        return [
            Viewing(round(float(share * self.duration_s[item]), 2), bool(gone))
            for item, share, gone in zip(items, shares, dismissed, strict=True)
        ]

    def reward(self, users: Sequence[int], slates: Sequence[Sequence[int]]) -> float:
        """Mean liking of all shown items: the truth, without the noise of watching."""
        return float(
            np.mean([self.liking[user, list(items)].mean() for user, items in zip(users, slates, strict=True)])
        )


def _match(split: Split) -> FloatArray:
    """[users, items], standardised per user: genres of an item that the user met more often than others did."""
    words = sorted({word for genres in split.interactions.genres for word in genres})
    genre = np.array([[word in genres for word in words] for genres in split.interactions.genres], dtype=np.float64)
    per_item = genre / np.maximum(genre.sum(axis=1, keepdims=True), 1.0)
    profiles = np.array([_profile(history, per_item) for history in split.train])
    match = (profiles - profiles.mean(axis=0)) @ per_item.T
    return (match - match.mean(axis=1, keepdims=True)) / np.maximum(match.std(axis=1, keepdims=True), 1e-9)


def _profile(history: IntArray, per_item: FloatArray) -> FloatArray:
    found: FloatArray = per_item[history].mean(axis=0)
    return found
