"""What a variant is asked: some items, for a user of whom this much is known."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Question:
    """k items. A variant without a pathway for what is liked, or for the profile, does not read it.

    history: item ids that the user met, oldest first; liked: those that they rated well, oldest first, which need not
    be in the history; profile: feature -> value.
    """

    history: Sequence[str]
    k: int
    liked: Sequence[str] = ()
    profile: Mapping[str, str] = field(default_factory=dict)

    def require_known(self, catalogue: Container[str]) -> None:
        """Raises InvalidRequestError that names the first item that the catalogue lacks."""
        for name, items in (("history", self.history), ("liked", self.liked)):
            for position, item in enumerate(items):
                if item not in catalogue:
                    raise InvalidRequestError(f"{name}[{position}]", f"no item is called {item!r}")

    def body(self) -> dict[str, Any]:
        """As it travels: what is empty stays away, so that a replica of before understands."""
        more = {"liked": list(self.liked), "profile": dict(self.profile)}
        return {"history": list(self.history), "k": self.k} | {name: value for name, value in more.items() if value}

    @classmethod
    def of(cls, body: Any) -> Question:
        """The inverse of `body`. Raises InvalidRequestError for anything else."""
        try:
            asked = cls(body["history"], body["k"], body.get("liked", []), body.get("profile", {}))
        except (TypeError, KeyError, AttributeError) as error:
            raise InvalidRequestError("body", f"needs history and k: {error!r}") from error
        if not (_texts(asked.history) and _texts(asked.liked)):
            raise InvalidRequestError("body", "history and liked are lists of item ids")
        if not isinstance(asked.profile, dict) or not _texts([*asked.profile.values()]):
            raise InvalidRequestError("body", "profile says a text of each feature")
        if not isinstance(asked.k, int) or isinstance(asked.k, bool):
            raise InvalidRequestError("body", "k is a number")
        return asked


def _texts(values: Any) -> bool:
    return isinstance(values, list) and set(map(type, values)) <= {str}
