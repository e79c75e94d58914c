"""What several commands take, and how they end when something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

USAGE = 64
"""Exit status for bad input, apart from typer's own 2 for a bad command line."""

UNAVAILABLE = 69
"""Exit status when a service does not answer."""

Home = Annotated[Path, typer.Option(envvar="CROSSFADE_HOME", help="where the service keeps what it makes")]
Url = Annotated[str, typer.Option(envvar="CROSSFADE_URL", help="address of a running service")]
Token = Annotated[
    str | None, typer.Option(envvar="CROSSFADE_TOKEN", help="bearer token; tokens.json of the home unless given")
]
Seed = Annotated[int, typer.Option(help="of everything that is drawn")]
Data = Annotated[
    Path | None,
    typer.Option("--path", help="your own interactions: CSV or Parquet with user_id, item_id, timestamp[, value]"),
]

Database = Annotated[str | None, typer.Option(envvar="CROSSFADE_DATABASE_URL", help="SQLite in the home unless given")]

DEFAULT_HOME = Path(".crossfade")
DEFAULT_URL = "http://127.0.0.1:8700"


@contextmanager
def plain_errors() -> Iterator[None]:
    """A sentence instead of a traceback for everything that the packages refuse."""
    from experiment.errors import ExperimentError
    from model.errors import ModelError
    from quant.errors import QuantError
    from serving.api_client import ApiError
    from serving.errors import ServingError

    try:
        yield
    except ApiError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(UNAVAILABLE if error.status in {0, 503} else USAGE) from error
    except (ServingError, ExperimentError, ModelError, QuantError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(USAGE) from error


def token_of(home: Path, token: str | None, scope: str) -> str:
    """The given token, or the service's own of that scope. Raises ConfigurationError."""
    from serving.auth import load_tokens
    from serving.errors import ConfigurationError

    if token is not None:
        return token
    path = home / "tokens.json"
    if not path.is_file():
        raise ConfigurationError(f"--token: none given, and there is no {path}; name the service's home with --home")
    for secret, found in load_tokens(path).values():
        if found.value == scope:
            return secret
    raise ConfigurationError(f"--token: {path} holds no token with the scope {scope!r}")


def text_of(path: Path) -> str:
    """A file's text. Raises ConfigurationError."""
    from serving.errors import ConfigurationError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
