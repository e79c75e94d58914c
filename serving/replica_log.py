"""What a replica's own rooms log, on its standard error at once: a start of minutes must not be a silent one.

Serve keeps a thousand records in memory before it writes them, so a replica that never gets ready would say nothing.
"""

from __future__ import annotations

import logging
import sys

MARK = "crossfade: "
"""How each line begins."""

ROOMS = ("model", "quant", "serving")


def log_to_stderr() -> None:
    """From INFO on, in the process that asks, once however often; Ray keeps its standard error among its logs."""
    for room in ROOMS:
        logger = logging.getLogger(room)
        if any(isinstance(handler, _Stderr) for handler in logger.handlers):
            continue
        handler = _Stderr(sys.__stderr__)  # not sys.stderr, which Serve has put its own logger behind
        handler.setFormatter(logging.Formatter(f"{MARK}%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]  # of text, as standard error is
    """Ours, so that it is known again."""
