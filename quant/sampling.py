"""What flows into the layers of a model: a bounded sample of every layer's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from model.catalogue import Catalogue
from model.recommender import Recommender
from quant.primitives import require_finite

MAX_ROWS = 4096
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


def sample_inputs(
    recommender: Recommender, names: Sequence[str], histories: Sequence[Sequence[str]], batch_size: int = 16
) -> dict[str, Tensor]:
    """Answer the histories (item ids, oldest first) and return what went into the named layers.

    A layer that nothing reached is absent. Raises NonFiniteError naming the first layer that NaN or infinity reached.
    """
    with InputSample(recommender.model, names) as sample:
        for begin in range(0, len(histories), batch_size):
            recommender.recommend(histories[begin : begin + batch_size], k=1)
    for name, rows in sample.rows.items():
        require_finite(rows, f"{name} (input)")
    return sample.rows


def synthetic_histories(catalogue: Catalogue, seed: int) -> list[list[str]]:
    """Histories of items drawn evenly from the catalogue, for when no real ones are at hand."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(catalogue), (SYNTHETIC_HISTORIES, SYNTHETIC_LENGTH), generator=generator)
    return [[catalogue.ids[item] for item in row] for row in drawn.tolist()]
