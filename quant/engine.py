"""Putting a loaded checkpoint on the GPU engine, in the arithmetic that it is stored in."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.engine.limits import MOST_BEAMS, unfit_device, unfit_model
from model.recommender import Recommender
from quant.crossover_timing import crossover_for
from quant.experts import Fp8Experts
from quant.linear import Fp8Linear
from quant.narrow import narrow_of
from quant.stored_weights import linear_shapes, stored_weights

if TYPE_CHECKING:
    from model.engine.arithmetic import Arithmetic

MEASURED_ROWS = tuple(2**power for power in range(13))
"""Decoder rows that products are timed at; in between, the next lower one decides."""

_log = logging.getLogger(__name__)


def on_engine(plain: Recommender, folder: Path | None = None) -> Recommender:
    """The same model answered by the engine, or `plain` itself and a warning why where the engine cannot run it.

    `plain` must not be used any longer when another recommender comes back. An FP8 model's products are served in
    the format that is faster on this device; timings are kept in `folder`. What else is in E4M3 is what its recipe says
    (`e4m3-engine`: all that the engine can), for that is the variant whose parity was measured.
    """
    eight = any(isinstance(module, Fp8Linear | Fp8Experts) for module in plain.model.modules())
    reasons = unfit_device(plain.device) + unfit_model(plain.config, plain.model.bos.dtype, eight=eight)
    if plain.beam_width > MOST_BEAMS:
        reasons += (f"beam_width is {plain.beam_width}, at most {MOST_BEAMS} beams are kept",)
    if reasons:
        _log.warning("%s is served by the plain model, not by the engine: %s", folder or "model", "; ".join(reasons))
        return plain
    # Triton is imported from here on only
    from model.engine.arithmetic import SixteenBit
    from quant.kernels.stored import Stored

    arithmetic: Arithmetic[Any] = SixteenBit()
    if eight:
        crossover = crossover_for(folder, plain.device, MEASURED_ROWS, linear_shapes(plain.model))
        arithmetic = Stored(crossover, MEASURED_ROWS, narrow_of(plain.model))
    return engine_recommender(plain, arithmetic)


def engine_recommender(plain: Recommender, arithmetic: Arithmetic[Any]) -> Recommender:
    """The engine in this arithmetic, unconditionally."""
    import torch

    from model.engine.context import History
    from model.engine.decode import Decoder
    from model.engine.prefixes import Prefixes
    from model.engine.recommender import EngineRecommender
    from model.engine.session import Session
    from model.engine.weights import weights_of

    with torch.inference_mode():
        weights = weights_of(plain.model, stored_weights(plain.model))
        session = Session(
            Decoder(weights, arithmetic),
            History(plain.model.context, plain.codes, plain._encoded),
            Prefixes.of(plain.trie, plain.config.codebook_size),
        )
    _log.info("engine: %s arithmetic, %d items", arithmetic.name, len(plain.catalogue))
    return EngineRecommender(plain, session)
