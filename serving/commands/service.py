"""up, demo, simulate, variants, token, db: a service of one's own."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Annotated

import typer

from serving.commands.options import (
    DEFAULT_HOME,
    DEFAULT_URL,
    Data,
    Database,
    Home,
    Seed,
    Token,
    Url,
    plain_errors,
    token_of,
)

Port = Annotated[int | None, typer.Option(help="where the service answers; 8700 unless given")]

token_group = typer.Typer(help="The service's own tokens.", no_args_is_help=True)
db_group = typer.Typer(help="The SQL store.", no_args_is_help=True)


def up(
    home: Home = DEFAULT_HOME,
    port: Port = None,
    seed: Seed = 0,
    path: Data = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="name=checkpoint folder; a trained bf16 and fp8 unless given")
    ] = None,
) -> None:
    """Run the service on this machine until Ctrl-C: Ray Serve, the gateway, the variants, the gate."""
    with plain_errors():
        from serving import terminal
        from serving.cluster import Cluster
        from serving.demo import DemoOptions, prepared_for
        from serving.settings import Settings

        out = terminal.console()
        settings = Settings(home=home) if port is None else Settings(home=home, port=port)
        given = _variants(variant or [])
        variants = given or prepared_for(home, DemoOptions(seed=seed, data_path=path), out).checkpoints
        with Cluster(settings, variants, say=lambda line: out.print(f"  {line}")) as cluster:
            out.print(
                f"ready: {cluster.url}   API: {cluster.url}/docs   tokens: {settings.tokens_path}", soft_wrap=True
            )
            wait_for_interrupt()


def demo(
    home: Home = DEFAULT_HOME,
    port: Port = None,
    seed: Seed = 0,
    path: Data = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="with a really damaged variant: must roll back")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="leave the service up after the verdict, until Ctrl-C")] = False,
    rate: Annotated[float, typer.Option(min=1, max=10_000, help="slates a second that visitors ask for")] = 60.0,
) -> None:
    """From nothing to a decided rollout of FP8 against BF16, with every real part. Exit status 1 if a check fails."""
    with plain_errors():
        from serving import terminal
        from serving.demo import DemoOptions, run_demo
        from serving.settings import Settings

        settings = Settings(home=home) if port is None else Settings(home=home, port=port)
        options = DemoOptions(seed, rollback, keep, rate, path)
        raise typer.Exit(run_demo(settings, options, terminal.console()))


def simulate(
    visitors: Annotated[int, typer.Option(min=1, help="how many come")] = 1000,
    rate: Annotated[float, typer.Option(min=0.1, max=10_000, help="slates a second that they ask for")] = 60.0,
    seed: Seed = 0,
    home: Home = DEFAULT_HOME,
    path: Data = None,
    url: Url = DEFAULT_URL,
    token: Token = None,
) -> None:
    """Send simulated visitors to a running service, through HTTP only. They know nothing of arms."""
    with plain_errors():
        from model.split import leave_one_out
        from serving import terminal
        from serving.pipeline import load_data
        from serving.simulate import Progress, TrafficOptions
        from serving.simulate import simulate as send
        from serving.visitors import Visitors

        out = terminal.console()
        crowd = Visitors(leave_one_out(load_data(home, path, out.print)), seed)
        options = TrafficOptions(visitors=visitors, rate_per_s=rate, seed=seed)
        with terminal.progress_bar(out) as bar:
            task = bar.add_task("visitors", total=visitors, note="")

            def show(progress: Progress) -> None:
                note = f"{progress.requests:,} slates, {progress.accepted:,} events, {progress.failures} failures"
                bar.update(task, completed=progress.visitors, note=note)

            report = asyncio.run(send(url, token_of(home, token, "events"), crowd, options, show))
        refused = sum(report.refused.values())
        out.print(f"{report.requests:,} slates, {report.failures} failures; events: {report.sent:,} sent = ", end="")
        out.print(f"{report.accepted:,} accepted + {refused:,} refused {dict(report.refused) or ''}")
        raise typer.Exit(1 if report.failures or report.moved else 0)


def variants(home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, token: Token = None) -> None:
    """The deployed variants and their health."""
    with plain_errors():
        from serving.api_client import ApiClient

        with ApiClient(url, token_of(home, token, "read")) as api:
            for found in api.variants():
                health = "healthy" if found["healthy"] else "NOT ANSWERING"
                typer.echo(f"{found['name']:<16} {found['precision']:<12} {found['replicas']} replicas  {health}")


@token_group.command("list")
def list_tokens(home: Home = DEFAULT_HOME) -> None:
    """The tokens of a service's home, made at the first call."""
    with plain_errors():
        from serving.auth import load_tokens

        for name, (secret, scope) in load_tokens(home / "tokens.json").items():
            typer.echo(f"{name:<10} {scope.value:<10} {secret}")


@db_group.command("upgrade")
def upgrade(
    home: Home = DEFAULT_HOME,
    database_url: Database = None,
) -> None:
    """Bring the database to this version's schema. `up` does it by itself."""
    with plain_errors():
        from experiment.store import migrate
        from experiment.store.engine import create_engine
        from serving.settings import Settings

        engine = create_engine(Settings(home=home, database_url=database_url).sql_url)
        migrate.upgrade(engine)
        typer.echo(f"{engine.url.render_as_string(hide_password=True)}: up to date")


def wait_for_interrupt() -> None:
    """Until Ctrl-C, or SIGTERM, which becomes one."""
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return


def _variants(given: list[str]) -> dict[str, Path]:
    from serving.errors import ConfigurationError
    from serving.variant_book import checked_name

    found = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not folder:
            raise ConfigurationError(f"--variant: expected name=folder, got {text!r}")
        found[checked_name(name)] = Path(folder)
    return found
