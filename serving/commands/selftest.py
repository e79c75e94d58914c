"""selftest: what a specification would do with some traffic, before any user meets it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.commands.options import Seed, plain_errors, text_of

if TYPE_CHECKING:
    from experiment.selftest import Outcome


def selftest(
    spec: Annotated[Path, typer.Argument(help="the specification, YAML or JSON")],
    users_per_day: Annotated[float, typer.Option(help="new users of the whole service, a day")],
    runs: Annotated[int, typer.Option(help="simulated experiments of each scenario")] = 50,
    loss: Annotated[
        float | None, typer.Option(help="relative loss that should be found, e.g. 0.05; twice each margin unless given")
    ] = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Try a specification on simulated traffic: false promotions, false alarms, how soon it decides."""
    with plain_errors():
        from experiment.selftest import scenarios, selftest
        from experiment.spec import load_spec
        from serving import terminal

        wanted, out = load_spec(text_of(spec)), terminal.console(stderr=as_json)
        with terminal.progress_bar(out) as bar:
            total = runs * len(scenarios(wanted, loss))
            task = bar.add_task("simulating", total=total, note="")
            outcomes = list(
                selftest(
                    wanted, users_per_day, runs, seed, loss,
                    lambda name, _run, _runs: bar.update(task, advance=1, note=name),
                )
            )  # fmt: skip
        if as_json:
            typer.echo(json.dumps([_fields(outcome) for outcome in outcomes], indent=2))
            return
        out.print(terminal.selftest(wanted, users_per_day, outcomes))


def _fields(outcome: Outcome) -> dict[str, Any]:
    fields = asdict(outcome.scenario) | {"days": None if math.isnan(outcome.days) else outcome.days}
    for name in ("promoted", "rolled_back", "undecided"):
        rate = getattr(outcome, name)
        fields[name] = {"share": rate.value, "interval": list(rate.interval()), "runs": rate.runs}
    return fields
