"""The `crossfade` command. Each command imports what it needs when it runs, so that --help is there at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from serving.commands import experiment, recommender, service
from serving.commands.align import align
from serving.commands.selftest import selftest

app = typer.Typer(
    name="crossfade",
    help="A/B tests and canary rollouts of recommenders on Ray Serve, with always-valid statistics.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

SERVICE, MODEL, RUN = "Service", "Model", "Experiments"

COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    SERVICE: (service.up, service.demo, service.simulate, service.variants),
    MODEL: (
        recommender.data,
        recommender.train,
        recommender.evaluate,
        recommender.recommend,
        recommender.quantize,
        align,
    ),
    RUN: (experiment.status, experiment.report, experiment.decisions, experiment.replay, selftest),
}

for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
for name, action in experiment.ACTIONS.items():
    app.command(name, rich_help_panel=RUN)(action)
app.add_typer(experiment.group, name="experiment", rich_help_panel=RUN)
app.add_typer(service.token_group, name="token", rich_help_panel=SERVICE)
app.add_typer(service.db_group, name="db", rich_help_panel=SERVICE)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("crossfade"))
        raise typer.Exit


@app.callback()
def root(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="say the version and end")
    ] = False,
) -> None:
    """Settings come from CROSSFADE_* environment variables, too."""


def main() -> None:
    """The console script."""
    app()
