"""What people read in a terminal: tables of quality, of a report and of the steps of a ramp."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from experiment.explain import seconds
from serving.pipeline import Prepared

if TYPE_CHECKING:
    from experiment.selftest import Outcome
    from experiment.spec import ExperimentSpec
    from serving.alignment import Aligned
    from stats.simulation.rates import Rate

STYLES = {
    "promoted": "bold green",
    "rolled_back": "bold red",
    "stopped": "yellow",
    "paused": "yellow",
    "running": "cyan",
    "ready": "dim",
}


def console(*, stderr: bool = False) -> Console:
    """At least 120 columns wide where nobody watches. What people wrote is shown as it is: [brackets] are no markup."""
    found = Console(highlight=False, markup=False, emoji=False, stderr=stderr)
    if not found.is_terminal:
        found.width = max(found.width, 120)
    return found


def progress_bar(out: Console) -> Progress:
    """For work whose length is known."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=out,
        transient=not out.is_terminal,
    )


def quality(prepared: Prepared) -> Table:
    """Every recommender on the same users and candidates."""
    k = prepared.quality[0].accuracy.k
    table = _table(f"Leave-one-out over the whole catalogue, {prepared.quality[0].accuracy.users} users")
    _columns(table, "recommender", f"HR@{k}", f"NDCG@{k}", "catalogue shown")
    for row in prepared.quality:
        found = row.accuracy
        table.add_row(row.name, f"{found.hit_rate:.4f}", f"{found.ndcg:.4f}", f"{100 * found.coverage:.1f} %")
    return table


def quantization(name: str, report: Mapping[str, Any]) -> Table:
    """What FP8 did to each layer, in decibels of signal over quantisation noise."""
    table = _table(f"{name}: recipe {report['recipe']}, activations sampled from {report['histories']}")
    _columns(table, "layer", "weights dB", "activations dB", "output dB", "weights lost")
    for layer in report["layers"]:
        decibels = [layer["weight_sqnr_db"], layer["activation_sqnr_db"], layer["output_sqnr_db"]]
        table.add_row(layer["layer"], *(_number(value) for value in decibels), f"{100 * layer['lost']:.1f} %")
    return table


def alignment(found: Aligned) -> Table:
    """What a checkpoint was post-trained on, and how far it moved."""
    log, steps = found.gathered, found.result.steps
    table = _table("Post-training on the log")
    _columns(table, "what", "how many")
    rows = {
        "slates learned from": log.slates,
        "slates read, with those for watch histories": log.read,
        "items that users saw": log.shown,
        "… compared with the user's own watches": log.scored,
        "… liked: the batches' best quarter": found.result.liked,
        "… disliked": log.disliked,
        "… left out: not in the catalogue": log.unknown_items,
        "… without a duration": log.without_duration,
        "history items left out: not in the catalogue": log.unknown_history,
        "optimizer steps": len(steps),
    }
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    last = {"log(π / π of the log) in the last step, liked": steps[-1].liked, "… disliked": steps[-1].disliked}
    for name, moved in last.items():
        table.add_row(name, "–" if math.isnan(moved) else f"{moved:+.3f}")
    return table


def agreement(name: str, report: Mapping[str, Any]) -> Table:
    """How far the answers of two precisions are the same, beside the control."""
    table = _table(f"{name}: agreement of the answers")
    _columns(table, "pair", "top-k overlap", "top-1 changed", "rank-biased overlap")
    for pair in report["agreements"]:
        shares = [f"{100 * pair['overlap']:.1f} %", f"{100 * pair['top1_changed']:.1f} %"]
        table.add_row(pair["name"], *shares, f"{pair['rank_biased_overlap']:.3f}")
    return table


def report(found: Mapping[str, Any]) -> RenderableType:
    """A run: its arms, effects, sample ratio, steps and verdict."""
    title = f"{found['key']}, run {found['run']}: {found['looks']} looks, specification {found['spec_digest'][:12]}"
    ahead = [Text(f"  {one['text']}") for one in found["outlook"] if found["coverage"]]
    return Group(
        Text(title, style="bold"),
        _arms(found),
        _effects(found),
        *_triggered(found),
        *ahead,
        _steps(found),
        verdict(found),
    )


def verdict(found: Mapping[str, Any]) -> RenderableType:
    """The state in one word and the reasons below it."""
    state = found["state"]
    lines = [Text(f"state: {state}", style=STYLES.get(state, ""))]
    srm = found["srm"]
    lines.append(Text(f"sample ratio: {srm['state']} (always-valid p = {srm['p_value']:.3g})"))
    lines += [Text(f"  - [{reason['code']}] {reason['text']}") for reason in found["reasons"]]
    return Group(*lines)


def selftest(spec: ExperimentSpec, users_per_day: float, outcomes: Sequence[Outcome]) -> RenderableType:
    """How often each truth ended how, with Wilson's 95 % intervals, and the same in a sentence."""
    table = _table(f"{spec.key}, {users_per_day:,.0f} new users a day: what the gate does with each truth")
    _columns(table, "truth", "promoted", "rolled back", "undecided", "after")
    for found in outcomes:
        after = "–" if math.isnan(found.days) else seconds(found.days * 86_400)
        table.add_row(
            found.scenario.name, *(_share(rate) for rate in (found.promoted, found.rolled_back, found.undecided)), after
        )
    harmless, edges = outcomes[0], [o for o in outcomes if o.scenario.name.endswith("by its margin")]
    said = f"An equal variant is promoted in {percent(harmless.promoted.value, False)} of the runs"
    said += "" if math.isnan(harmless.days) else f", after {seconds(harmless.days * 86_400)} on average"
    said += f", and rolled back in {percent(harmless.rolled_back.value, False)} (allowed: "
    said += f"{percent(spec.alpha.rollback, False)})."
    if edges:
        worst = max(edges, key=lambda o: o.promoted.value)
        said += f" One that is worse by a whole margin is promoted in {percent(worst.promoted.value, False)} at most"
        said += f" (allowed: {percent(spec.alpha.promote, False)})."
    return Group(table, Text(said))


def step_line(decision: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> str:
    """One change of the ramp or the state, as it is told while a run goes on."""
    coverage = steps[decision["step_after"]]["coverage"]
    reasons = "; ".join(reason["text"] for reason in decision["reasons"])
    change = decision["verdict"]
    if decision["state_after"] != decision["state_before"]:
        change = f"{decision['state_before']} → {decision['state_after']}"
    return f"look {decision['look']:>3}  {change:<22} {100 * coverage:>4.3g} % an arm  {reasons}"


def percent(value: float | None, signed: bool = True) -> str:
    """A share in per cent, a dash where there is none."""
    return "–" if value is None else f"{100 * value:{'+' if signed else ''}.2f} %"


def _arms(found: Mapping[str, Any]) -> Table:
    table = _table("Arms (limits are always-valid: they hold at every look together)")
    _columns(
        table, "arm", "users", "closed", "requests", "impressions", "clicks", "CTR", "95 % limits", "failed", "slow"
    )
    for arm in found["arms"]:
        ctr = arm["readings"].get("ctr", {})
        limits = f"{percent(ctr.get('low'), False)} … {percent(ctr.get('high'), False)}"
        counts = [arm["users"], arm["closed_users"], arm["requests"], arm["impressions"], arm["clicks"]]
        bad = [arm["failed"] + arm["fallbacks"], arm["slow"]]
        name = f"{arm['arm']} (control)" if arm["is_control"] else arm["arm"]
        row = [name, *(f"{count:,.0f}" for count in counts), percent(ctr.get("value"), False), limits]
        table.add_row(*row, *(f"{count:,.0f}" for count in bad))
    return table


def _effects(found: Mapping[str, Any]) -> Table:
    table = _table("Effects relative to control")
    _columns(table, "metric", "arm", "role", "effect", "95 % limits", "one-sided", "margin", "evidence")
    for metric in found["metrics"]:
        limits = f"{percent(metric['low'])} … {percent(metric['high'])}"
        margin = "–" if metric["margin"] is None else f"±{100 * metric['margin']:g} %"
        values = [percent(metric["effect"]), limits, percent(metric["bound"]), margin]
        share = "–" if metric["role"] == "quality" else f"{100 * metric['share_of_evidence']:.0f} %"
        table.add_row(metric["metric"], metric["arm"], metric["role"], *values, share)
    for limit in found["limits"]:
        share = percent(limit["value"], False)
        table.add_row(limit["name"], limit["arm"], "hard limit", share, "", "", f"{100 * limit['max']:g} %", "")
    return table


def _triggered(found: Mapping[str, Any]) -> list[Text]:
    """What shadow requests say; reports of before they existed have no such field."""
    shown = found.get("triggered")
    if shown is None:
        return []
    ratio = f"sample ratio of them: {shown['srm']['state']} (always-valid p = {shown['srm']['p_value']:.3g})"
    return [Text(f"  {line}") for line in (*shown["text"], ratio)]


def _steps(found: Mapping[str, Any]) -> Table:
    table = _table("Ramp")
    _columns(table, "users an arm", "reached", "because")
    for step in found["steps"]:
        reached = "–" if step["reached_at"] is None else step["reached_at"][11:19]
        table.add_row(f"{100 * step['coverage']:.3g} %", reached, step["reason"] or "")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold")


def _columns(table: Table, first: str, *others: str) -> None:
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="left" if name in {"because", "arm", "role"} else "right", overflow="fold")


def _share(rate: Rate) -> str:
    low, high = rate.interval()
    return f"{100 * rate.value:.1f} % ({100 * low:.1f} … {100 * high:.1f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
