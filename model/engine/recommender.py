"""The recommender that the service calls, answered by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from model.engine.session import Session
from model.recommender import Recommender
from model.signals import Request


class EngineRecommender(Recommender):
    """`Recommender` with the engine's beam search in place of the plain one; answers are legal and unseen alike.

    Scores differ from the plain model's by the rounding of 16- or 8-bit arithmetic, and the beam is as wide as the
    next power of two. `model` keeps its context processor and gives up its decoder, whose weights the engine holds.
    """

    def __init__(self, plain: Recommender, session: Session[Any]) -> None:
        self.model, self.catalogue, self.beam_width = plain.model, plain.catalogue, plain.beam_width
        self.config, self.device = plain.config, plain.device
        self.codes, self.trie, self._encoded = plain.codes, plain.trie, plain._encoded
        self.contexts, self._digest = plain.contexts, plain._digest  # unused: contexts are made inside the graph
        self.session = session
        del self.model.decoder

    def rank(self, histories: Sequence[Request[int]], width: int, *, filter_seen: bool = True) -> tuple[Tensor, Tensor]:
        """As `Recommender.rank`; raises ModelError for a width beyond the engine's."""
        found = self.session.search(histories, width, filter_seen=filter_seen)
        return found.items, found.scores

    def warm_up(self, most: int, widths: Sequence[int], longest: int = 0) -> None:
        """Get ready for batches up to `most` that ask for these widths, with histories up to `longest` items.

        Other sizes are answered, too, but the first request of each waits for its graph.
        """
        self.session.warm_up(most, [max(width, self.beam_width) for width in widths], longest)
