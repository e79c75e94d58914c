"""Post-training of a checkpoint from the service's own log: read, join, learn, write."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.feedback import Span
from experiment.ports import FeedbackLog
from serving.errors import ConfigurationError
from serving.gathered import Gathered, gather

if TYPE_CHECKING:
    from model.align import AlignResult
    from model.checkpoint import Checkpoint
    from model.gbpo import AlignOptions, AlignStep, Objective

WATCH_HISTORY = timedelta(days=30)
"""How far before the first request learned from the users' watch histories are read."""

READ_STEP = 500
"""Slates between two reports while the log is read."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told how far it is: slates (read, of how many), then optimizer steps (done, of how many, the last)."""

    read: Callable[[int, int], None] = lambda _done, _of: None
    learned: Callable[[int, int, AlignStep], None] = lambda _done, _of, _step: None


@dataclass(frozen=True, slots=True)
class Aligned:
    """What came of it: the new checkpoint's digest, the picture beside it, and what it was learned from."""

    gathered: Gathered
    result: AlignResult
    digest: str
    plot: Path


def align_checkpoint(
    source: Path,
    target: Path,
    log: FeedbackLog,
    span: Span,
    options: AlignOptions,
    seed: int,
    durations: Mapping[str, float] | None = None,
    listener: Listener | None = None,
    objective: Objective | None = None,
) -> Aligned:
    """Write to `target` what `source` becomes by GBPO on the feedback of `span`, in the precision of `source`.

    objective: another loss in GBPO's place, for comparisons. Raises ConfigurationError when `target` is `source`, when
    the log has no feedback, or none about items that the checkpoint knows; CheckpointError for a damaged or quantised
    one; ModelError for impossible options.
    """
    from model.align import align
    from model.align_plot import plot_alignment
    from model.checkpoint import save
    from model.gbpo import gbpo_loss

    listener = listener or Listener()
    if source.resolve() == target.resolve():
        raise ConfigurationError(f"{target}: the aligned checkpoint must not replace its source")
    checkpoint = _plain(source)
    files, stored = checkpoint.files, checkpoint.model.bos.dtype
    found = _gathered(log, span, checkpoint, durations, listener)
    model = checkpoint.model.float()
    result = align(model, files.tokenizer.codes, found.lessons, options, seed, listener.learned, objective or gbpo_loss)
    about = _provenance(files.digest, span, found, result, options, seed)
    about |= {
        "objective": "GBPO" if objective is None else "another",
        "durations": "one bucket" if durations is None else "given",
    }
    extra = {**files.extra, "aligned": about}
    digest = save(target, model, files.config, files.catalogue, files.tokenizer, extra=extra, dtype=stored)
    plot = target.with_name(f"{target.name}-aligned.png")
    plot_alignment(plot, result.steps)
    return Aligned(found, result, digest, plot)


def _plain(source: Path) -> Checkpoint:
    from model.checkpoint import Checkpoint, build_model, read
    from model.errors import CheckpointError

    files = read(source)
    if files.quantization is not None:
        raise CheckpointError(
            f"{source}: is quantised, and rounded weights cannot take small steps; align the plain checkpoint that it "
            "came from, and quantise the result"
        )
    return Checkpoint(build_model(files), files)


def _gathered(
    log: FeedbackLog, span: Span, checkpoint: Checkpoint, durations: Mapping[str, float] | None, listener: Listener
) -> Gathered:
    if not log.count(span):
        raise ConfigurationError(
            f"no feedback found{_words(span)}: the log holds no slates there. They are logged while "
            "CROSSFADE_LOG_SLATES is true, which is the default"
        )
    wide = replace(span, since=None if span.since is None else span.since - WATCH_HISTORY, variant=None)
    total = log.count(wide)

    def advance(read: int) -> None:
        if read % READ_STEP == 0 or read >= total:
            listener.read(read, total)

    catalogue = checkpoint.files.catalogue
    found = gather(log.read(wide), catalogue, span, durations, checkpoint.files.config, advance)
    if not found.shown:
        raise ConfigurationError(f"no feedback found{_words(span)}: no client reported an impression of any item")
    if found.unknown_items == found.shown:
        raise ConfigurationError(
            f"none of the {found.shown:,} items that users saw is in the checkpoint's catalogue of {len(catalogue):,}: "
            "it was trained on another one"
        )
    if not found.scored and not found.disliked:
        raise ConfigurationError(
            f"nothing to learn{_words(span)}: of {found.shown:,} items that users saw none was dismissed, and no user "
            "had watched anything of like duration in an earlier request"
        )
    return found


def _words(span: Span) -> str:
    words = [
        "" if span.variant is None else f"of variant {span.variant!r}",
        "" if span.since is None else f"since {span.since.isoformat()}",
        "" if span.until is None else f"until {span.until.isoformat()}",
    ]
    return "".join(f" {word}" for word in words if word)


def _provenance(
    digest: str, span: Span, found: Gathered, result: AlignResult, options: AlignOptions, seed: int
) -> dict[str, Any]:
    """What the checkpoint's `extra` says of how it came about; JSON values only."""
    losses = [step.loss for step in result.steps]
    per_epoch = len(losses) // options.epochs
    return {
        "from": digest,
        "variant": span.variant,
        "since": None if span.since is None else span.since.isoformat(),
        "newest": None if found.newest is None else found.newest.isoformat(),
        "slates": found.slates,
        "items": len(found.lessons),
        "scored": found.scored,
        "disliked": found.disliked,
        "positive": result.liked,
        "options": asdict(options),
        "seed": seed,
        "losses": [
            round(statistics.fmean(losses[place : place + per_epoch]), 6) for place in range(0, len(losses), per_epoch)
        ],
    }
