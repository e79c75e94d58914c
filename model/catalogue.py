"""The items that a checkpoint knows: strings outside, indices inside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from model.data import Interactions
from model.errors import CheckpointError, ModelError


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """Item ids with their titles and genres; the position of an id is its index everywhere in the model."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    genres: tuple[tuple[str, ...], ...]
    _index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.ids:
            raise ModelError("catalogue: no items")
        if not len(self.ids) == len(self.titles) == len(self.genres):
            raise ModelError("catalogue: ids, titles and genres differ in length")
        object.__setattr__(self, "_index", {item: index for index, item in enumerate(self.ids)})
        if len(self._index) != len(self.ids):
            raise ModelError("catalogue: an item id occurs twice")

    @classmethod
    def of(cls, interactions: Interactions) -> Catalogue:
        """The catalogue of a data set, in its own order."""
        return cls(interactions.items, interactions.titles, interactions.genres)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._index

    def index_of(self, item_id: str) -> int:
        """Raises ModelError naming the item when it is unknown."""
        return self.indices([item_id])[0]

    def indices(self, item_ids: Iterable[str]) -> list[int]:
        """Indices of several items; raises ModelError naming the first unknown one."""
        try:
            return list(map(self._index.__getitem__, item_ids))
        except KeyError as unknown:
            raise ModelError(f"history: unknown item {unknown.args[0]!r}") from None

    def title(self, item_id: str) -> str:
        """The title, or the id itself where none is known."""
        return self.titles[self.index_of(item_id)] or item_id

    def to_json(self) -> str:
        """One JSON document."""
        return json.dumps({"ids": self.ids, "titles": self.titles, "genres": self.genres}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Catalogue:
        """The inverse of `to_json`; raises CheckpointError for anything else."""
        try:
            raw = json.loads(text)
            ids, titles, genres = (raw[name] for name in ("ids", "titles", "genres"))
            if not all(isinstance(item, str) for part in (ids, titles, *genres) for item in part):
                raise CheckpointError("catalogue.json: ids, titles and genres must be strings")
            return cls(tuple(ids), tuple(titles), tuple(_words(words) for words in genres))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"catalogue.json: not a catalogue ({error!r})") from error


def _words(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(words)
