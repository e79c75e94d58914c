"""Training positions of a split as flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.config import OneRecConfig
from model.context_tokens import ContextTokens, newest, side_by_side
from model.data import IntArray, Interactions
from model.signals import profile_buckets
from model.split import Split


@dataclass(frozen=True, slots=True, eq=False)
class Positives:
    """The liked items of all users one after the other [m], and until [n]: how many come before each sample."""

    items: Tensor
    until: Tensor

    @classmethod
    def of(cls, items: Tensor, liked: Tensor) -> Positives:
        """Of all items [n] those that are liked [n]."""
        return cls(items[liked], liked.cumsum(0) - liked.long())

    @property
    def liked(self) -> Tensor:
        """Which of the samples' own items are liked [n]."""
        return torch.cat([self.until, torch.tensor([self.items.shape[0]])]).diff() > 0


@dataclass(frozen=True, slots=True, eq=False)
class Profiles:
    """Buckets of profile features [users, F], padded with -1, and owner [n]: the row of each sample's user."""

    features: Tensor
    owner: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """All positions of all histories as flat arrays: no history is copied.

    items [n]: the items of all users one after the other; start [n]: where the user's history begins.
    Sample p has items[p] as target and items[start[p] : p] as history, empty for a user's first item. Of what is
    liked it sees positives.items[until[start[p]] : until[p]]: what precedes the target, too. positives and profiles
    are None where the model has no such pathway. instant [n]: a number that neighbours share when one user met them at
    one time; it rises along the array.
    """

    items: Tensor
    start: Tensor
    instant: Tensor
    positives: Positives | None = None
    profiles: Profiles | None = None

    @classmethod
    def of(cls, split: Split, config: OneRecConfig | None = None) -> Samples:
        """Every training item of every user is a target once; `config` says which pathways there are."""
        return cls._joined(split, range(len(split.train)), config, with_validation=False)

    @classmethod
    def with_validation(cls, split: Split, config: OneRecConfig | None = None) -> tuple[Samples, Tensor]:
        """The same with each evaluated user's validation item at the end, and those items' samples [users]."""
        samples = cls._joined(split, split.evaluated_users().tolist(), config, with_validation=True)
        after = torch.cat([samples.start[1:], torch.tensor([len(samples)])])
        return samples, (after > torch.arange(len(samples))).nonzero()[:, 0]

    @classmethod
    def _joined(
        cls, split: Split, users: Sequence[int], config: OneRecConfig | None, *, with_validation: bool
    ) -> Samples:
        histories = [split.history(user, with_validation=with_validation) for user in users]
        lengths = np.array([history.shape[0] for history in histories])
        begin = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        joined = np.concatenate(histories)
        items = torch.from_numpy(joined)
        instant = torch.from_numpy(_instants(split.interactions, np.repeat(np.array(users), lengths), joined))
        positives = profiles = None
        if config is not None and config.positive_len:
            least = config.positive_from
            masks = [split.is_liked(user, least, with_validation=with_validation) for user in users]
            liked = torch.from_numpy(np.concatenate(masks))
            positives = Positives.of(items, liked)
        if config is not None and config.profile_features:
            owner = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
            profiles = Profiles(_buckets(split, users, config.profile_features), owner)
        return cls(items, torch.from_numpy(np.repeat(begin, lengths)), instant, positives, profiles)

    def __len__(self) -> int:
        return self.items.shape[0]

    def newest(self, count: int) -> Tensor:
        """The samples of each user's newest `count` items, rising [m]; all samples for 0.

        Only as targets: their histories reach back as far as ever.
        """
        sample = torch.arange(len(self))
        if not count:
            return sample
        end = torch.searchsorted(self.start, self.start, right=True)  # of the user's samples: all with this start
        return sample[end - sample <= count]

    def reordered(self, generator: torch.Generator) -> Samples:
        """The same histories with the items of each instant in a random order among themselves.

        Logs often stamp a page of items with the one time at which it was sent (half of all neighbours in
        MovieLens-100K); the order within a page is the file's then, and nothing to learn.
        """
        drawn = torch.rand(len(self), generator=generator).argsort()
        drawn = drawn[self.instant[drawn].argsort(stable=True)]
        items, positives = self.items[drawn], self.positives
        if positives is not None:
            positives = Positives.of(items, positives.liked[drawn])
        return replace(self, items=items, positives=positives)

    def windows(self, sample: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Samples [B] -> (items [B, N] newest first, valid [B, N]); N is at most `length`."""
        return newest(self.items, self.start[sample], sample, length)

    def tokens(self, sample: Tensor, config: OneRecConfig) -> ContextTokens:
        """The contexts of samples [B]: the history and, behind its padding, what was liked before the target."""
        features = None if self.profiles is None else self.profiles.features[self.profiles.owner[sample]]
        liked = None
        if self.positives is not None:
            until = self.positives.until
            liked = newest(self.positives.items, until[self.start[sample]], until[sample], config.positive_len)
        return side_by_side(self.windows(sample, config.context_len), liked, config.context_len, features)

    def tensors(self) -> dict[str, Tensor]:
        """All that there is, by name."""
        out = {"items": self.items, "start": self.start}
        if self.positives is not None:
            out |= {"positives.items": self.positives.items, "positives.until": self.positives.until}
        if self.profiles is not None:
            out |= {"profiles.features": self.profiles.features, "profiles.owner": self.profiles.owner}
        return out


def _buckets(split: Split, users: Sequence[int], count: int) -> Tensor:
    known = split.interactions.profiles
    rows = [profile_buckets(known[user], count) if known else [] for user in users]
    out = np.full((len(rows), max(1, *map(len, rows))), -1, dtype=np.int64)
    for row, found in enumerate(rows):
        out[row, : len(found)] = found
    return torch.from_numpy(out)


def _instants(interactions: Interactions, user: IntArray, item: IntArray) -> IntArray:
    """Numbers [n], rising where the user or the time of the first interaction of user [n] with item [n] changes."""
    n_items = len(interactions.items)
    pairs, first = np.unique(interactions.user * n_items + interactions.item, return_index=True)  # rows lie by time
    time = interactions.timestamp[first[np.searchsorted(pairs, user * n_items + item)]]
    changes = np.ones(user.shape[0], dtype=np.int64)
    changes[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    return changes.cumsum()
