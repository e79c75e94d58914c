"""What flows into the layers of a model: a bounded sample of every layer's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

from model.catalogue import Catalogue
from quant.errors import QuantError

MAX_ROWS = 4096
PER_HISTORY = 4  # of the newest items of a history: rows enough for percentiles from a few dozen histories
SYNTHETIC_HISTORIES = 32
SYNTHETIC_LENGTH = 20


class InputSample:
    """Keeps inputs of the named layers while entered: `rows` maps a name to at most `max_rows` rows [n, K]."""

    def __init__(self, model: nn.Module, names: Iterable[str], max_rows: int = MAX_ROWS) -> None:
        self.rows: dict[str, Tensor] = {}
        self._layers = {name: model.get_submodule(name) for name in names}
        self._max_rows = max_rows
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> InputSample:
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._keeper(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _keeper(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            flat = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            held = self.rows.get(name)
            room = self._max_rows - (0 if held is None else held.shape[0])
            if room > 0:
                step = -(-flat.shape[0] // room)  # spread over the batch: its first rows may be one request's beams
                fresh = flat[::step].clone()
                self.rows[name] = fresh if held is None else torch.cat([held, fresh])

        return keep


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Places in histories where the model is asked for the next item.

    histories: item indices, oldest first; targets [B]: the item that came next, whose codes the decoder is given.
    """

    histories: tuple[tuple[int, ...], ...]
    targets: Tensor

    @classmethod
    def of(cls, histories: Sequence[Sequence[int]]) -> Positions:
        """The newest PER_HISTORY items of each history, each after what precedes it. Raises QuantError without any."""
        places = [(row, end) for row in histories for end in range(max(0, len(row) - PER_HISTORY), len(row))]
        if not places:
            raise QuantError("histories: not one of them holds an item")
        return cls(tuple(tuple(row[:end]) for row, end in places), torch.tensor([row[end] for row, end in places]))

    def windows(self, length: int) -> tuple[Tensor, Tensor]:
        """(items [B, N] newest first, -1 where there is none; valid [B, N]); N is at most `length`."""
        newest = [history[-length:][::-1] for history in self.histories]
        longest = max(1, *(len(row) for row in newest))
        items = torch.tensor([[*row, *([-1] * (longest - len(row)))] for row in newest])
        return items, items >= 0


def synthetic_histories(catalogue: Catalogue, seed: int) -> list[list[str]]:
    """Histories of items drawn evenly from the catalogue, for when no real ones are at hand."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(catalogue), (SYNTHETIC_HISTORIES, SYNTHETIC_LENGTH), generator=generator)
    return [[catalogue.ids[item] for item in row] for row in drawn.tolist()]
