"""status, report, decisions, promote, rollback …: an experiment on a running service, through its API."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.commands.options import DEFAULT_HOME, DEFAULT_URL, Home, Token, Url, plain_errors, text_of, token_of

if TYPE_CHECKING:
    from serving.api_client import ApiClient

Key = Annotated[str, typer.Argument(help="the experiment")]
Reason = Annotated[str, typer.Option("--reason", "-r", help="why; it is what others read in the log of decisions")]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]

EXIT = {"promoted": 0, "running": 0, "ready": 0, "rolled_back": 1, "stopped": 2, "paused": 2}
"""Exit status of `status`: 0 promoted or going well, 1 rolled back, 2 stopped, held or inconclusive."""

group = typer.Typer(help="Create and list experiments.", no_args_is_help=True)


@group.command("create")
def create(
    spec: Annotated[Path, typer.Option("--file", "-f", help="the specification, YAML or JSON")],
    start: Annotated[bool, typer.Option(help="start it at once")] = False,
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    token: Token = None,
) -> None:
    """Create an experiment from its specification. Nothing is routed before its start."""
    with plain_errors(), _api(home, url, token, "operate") as api:
        kind = "application/json" if spec.suffix == ".json" else "application/yaml"
        found = api.create_experiment(text_of(spec), kind)
        if start:
            found = api.action(found["key"], "start", f"created from {spec.name} and started")
        typer.echo(f"{found['key']}: {found['state']}, version {found['version']}")


@group.command("list")
def list_experiments(home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, token: Token = None) -> None:
    """All experiments, newest first."""
    with plain_errors(), _api(home, url, token, "read") as api:
        for found in api.experiments():
            share = f"{100 * found['coverage']:g} % an arm"
            typer.echo(f"{found['key']:<32} run {found['run']}  {found['state']:<12} {share}")


@group.command("check")
def check(spec: Annotated[Path, typer.Argument(help="the specification")]) -> None:
    """Whether a specification would be accepted, without a service."""
    with plain_errors():
        from experiment.spec import load_spec

        found = load_spec(text_of(spec))
        typer.echo(f"{found.key}: fine, digest {found.digest[:12]}")


@group.command("schema")
def schema() -> None:
    """The JSON Schema of a specification."""
    from experiment.spec import ExperimentSpec

    typer.echo(json.dumps(ExperimentSpec.model_json_schema(), indent=2))


def status(
    key: Key,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="until it is decided")] = False,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    token: Token = None,
) -> None:
    """Where the ramp stands. Exit status: 0 promoted or going well, 1 rolled back, 2 held, stopped, inconclusive."""
    with plain_errors(), _api(home, url, token, "read") as api:
        found = api.status(key)
        while watch and found["state"] in {"ready", "running", "paused"}:
            _tell(found, as_json)
            time.sleep(2.0)
            found = api.status(key)
        _tell(found, as_json)
    codes = {reason["code"] for reason in found["reasons"]}
    raise typer.Exit(2 if "inconclusive" in codes else EXIT.get(found["state"], 2))


def report(
    key: Key, as_json: AsJson = False, home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, token: Token = None
) -> None:
    """Counts, effects with always-valid limits, sample ratio, ramp steps with reasons, verdict."""
    with plain_errors(), _api(home, url, token, "read") as api:
        found = api.report(key)
        if as_json:
            typer.echo(json.dumps(found, indent=2))
            return
        from serving import terminal

        terminal.console().print(terminal.report(found))


def decisions(key: Key, home: Home = DEFAULT_HOME, url: Url = DEFAULT_URL, token: Token = None) -> None:
    """Who decided what, when and why."""
    with plain_errors(), _api(home, url, token, "read") as api:
        for line in api.decisions(key):
            states = f"{line['state_before']} → {line['state_after']}"
            change = f"{states}, step {line['step_before'] + 1} → {line['step_after'] + 1}"
            why = "; ".join(reason["text"] for reason in line["reasons"])
            typer.echo(f"{line['at'][:19]}  {line['actor']:<10} {line['verdict']:<9} {change}: {why}")


def replay(
    key: Key,
    look: Annotated[int | None, typer.Option(help="one look; all of them unless given")] = None,
    home: Home = DEFAULT_HOME,
    url: Url = DEFAULT_URL,
    token: Token = None,
) -> None:
    """Recompute stored looks from their stored evidence. Exit status 1 when a verdict comes out differently."""
    with plain_errors(), _api(home, url, token, "read") as api:
        from serving.replay import replayed

        differing = 0
        for line in replayed(api.experiment(key), api.decisions(key, with_evidence=True)):
            if look is None or line.look == look:
                differing += not line.same
                word = "same" if line.same else f"now {line.verdict.value}: {'; '.join(r.text for r in line.reasons)}"
                typer.echo(f"look {line.look}: stored {line.stored.value}, {word}")
        raise typer.Exit(1 if differing else 0)


def _acting(action: str, meaning: str) -> Any:
    def command(
        key: Key,
        reason: Reason,
        arm: Annotated[str | None, typer.Option(help="which treatment, when there are several")] = None,
        home: Home = DEFAULT_HOME,
        url: Url = DEFAULT_URL,
        token: Token = None,
    ) -> None:
        with plain_errors(), _api(home, url, token, "operate") as api:
            found = api.action(key, action, reason, arm=arm)
            typer.echo(f"{found['key']}: {found['state']}, version {found['version']}")

    command.__doc__ = meaning
    return command


ACTIONS = {
    "start": _acting("start", "Start a run: the first step of the ramp is routed from now on."),
    "pause": _acting("pause", "Pause: users keep their arms, the ramp stands still, judging goes on."),
    "resume": _acting("resume", "Go on after a pause."),
    "advance": _acting("advance", "Widen to the next step of the ramp by hand."),
    "promote": _acting("promote", "Make the candidate the default for everybody."),
    "rollback": _acting("rollback", "Back to control for everybody. It ends the run."),
    "stop": _acting("stop", "End the run without a verdict."),
    "restart": _acting("restart", "A new run with a new assignment of users."),
}


def _api(home: Path, url: str, token: str | None, scope: str) -> ApiClient:
    from serving.api_client import ApiClient

    return ApiClient(url, token_of(home, token, scope))


def _tell(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        return
    step = f"step {found['step'] + 1} of {found['steps']} ({100 * found['coverage']:g} % an arm)"
    typer.echo(f"{found['key']} run {found['run']}: {found['state']}, {step}, last look: {found['decision']}")
    for reason in found["reasons"]:
        typer.echo(f"  - {reason['text']}")
