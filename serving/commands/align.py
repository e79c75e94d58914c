"""align: post-training from the service's own log."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.commands.options import DEFAULT_HOME, Database, Home, Seed, plain_errors

if TYPE_CHECKING:
    from experiment.ports import FeedbackLog
    from model.gbpo import AlignStep


def align(
    checkpoint: Annotated[Path, typer.Argument(help="folder of a plain checkpoint")],
    target: Annotated[Path, typer.Argument(help="folder of the new checkpoint")],
    home: Home = DEFAULT_HOME,
    database_url: Database = None,
    variant: Annotated[
        str | None, typer.Option(help="learn from what this one answered; all of them unless given")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="learn from requests from then on: ISO 8601, UTC unless it says")
    ] = None,
    until: Annotated[str | None, typer.Option(help="and before then")] = None,
    durations: Annotated[
        Path | None, typer.Option(help="CSV of item_id,duration_s; without it all items share one bucket")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="times over the log")] = 3,
    batch_size: Annotated[
        int, typer.Option(min=2, help="shown items a step; the best quarter of them is positive")
    ] = 512,
    learning_rate: Annotated[float, typer.Option(help="of AdamW")] = 1e-4,
    supervision: Annotated[
        float, typer.Option(help="weight of the next-item loss on the histories, against forgetting")
    ] = 0.0,
    seed: Seed = 0,
) -> None:
    """Post-train a checkpoint on what users did with what they were shown: duration-aware reward and GBPO.

    The log is read, not changed. Scores compare a user's playing times with those of their own earlier requests, so the
    log needs several requests of a user.
    """
    with plain_errors():
        from experiment.feedback import Span
        from model.gbpo import AlignOptions
        from serving import terminal
        from serving.alignment import Listener, align_checkpoint
        from serving.durations import load_durations

        span = Span(_moment("--since", since), _moment("--until", until), variant)
        known = None if durations is None else load_durations(durations)
        options = AlignOptions(epochs, batch_size, learning_rate, supervision)
        log, out = _log(home, database_url), terminal.console()
        with terminal.progress_bar(out) as bar:
            reading = bar.add_task("reading the log", total=None, note="")
            learning = bar.add_task("aligning", total=None, note="")

            def learned(done: int, steps: int, step: AlignStep) -> None:
                bar.update(learning, completed=done, total=steps, note=f"loss {step.loss:.4f}")

            listener = Listener(lambda done, of: bar.update(reading, completed=done, total=of), learned)
            found = align_checkpoint(checkpoint, target, log, span, options, seed, known, listener)
        out.print(terminal.alignment(found))
        out.print(f"{target}: aligned; {found.plot} shows how it went", soft_wrap=True)


def _log(home: Path, database_url: str | None) -> FeedbackLog:
    """The store, as it is: a command that reads must not bring a running service's schema forward."""
    from sqlalchemy import make_url

    from experiment.store import migrate
    from experiment.store.engine import create_engine
    from experiment.store.feedback_sql import SqlFeedbackLog
    from serving.errors import ConfigurationError
    from serving.settings import Settings

    url = make_url(Settings(home=home, database_url=database_url).sql_url)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
        raise ConfigurationError(f"--home: no database in {url.database}; name the service's home, or --database-url")
    engine = create_engine(url.render_as_string(hide_password=False))
    if not migrate.is_current(engine):
        where = engine.url.render_as_string(hide_password=True)
        raise ConfigurationError(
            f"--database-url: {where} has another schema than this version's: crossfade db upgrade"
        )
    return SqlFeedbackLog(engine)


def _moment(option: str, text: str | None) -> datetime | None:
    from serving.errors import ConfigurationError

    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"{option}: {text!r} is no time of ISO 8601, e.g. 2026-11-23T12:00:00Z") from error
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
