"""The demo: from nothing to a decided rollout with every real part, and a check of everything that it claims."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from experiment.assign import bucket
from experiment.routing import arm_ranges
from experiment.spec import ExperimentSpec, load_spec
from experiment.state import State
from experiment.store.engine import create_engine
from experiment.store.events_sql import SqlEventLog
from serving import terminal
from serving.api_client import ApiClient
from serving.cluster import Cluster
from serving.commands.service import wait_for_interrupt
from serving.errors import ConfigurationError
from serving.pipeline import Prepared, prepare
from serving.settings import Settings
from serving.simulate import TrafficOptions, TrafficReport, simulate
from serving.specs import spec_text
from serving.visitors import Visitors

CHECKED_VISITORS = 10_000
ROWS = ("impression", "click", "watch", "like", "dismiss")


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """seed decides data order, model, visitors and what they do; rollback swaps in the really damaged variant.

    keep: leave the service running after the verdict, until Ctrl-C.
    """

    seed: int = 0
    rollback: bool = False
    keep: bool = False
    rate_per_s: float = 60.0
    data_path: Path | None = None


def run_demo(settings: Settings, options: DemoOptions, out: Console) -> int:
    """Returns the exit status: 0 when the rollout ended as it must and every check holds."""
    began_s = time.monotonic()
    name = "demo-rollback" if options.rollback else "demo"
    text = spec_text(name)
    spec = load_spec(text)
    prepared = prepared_for(settings.home, options, out)
    home = settings.home / name
    shutil.rmtree(home, ignore_errors=True)
    settings = settings.model_copy(update={"home": home})
    out.print(Rule("Live traffic"))
    with Cluster(settings, prepared.checkpoints, say=lambda line: out.print(f"  {line}")) as cluster:
        traffic = Traffic(cluster, prepared, options)
        found = _rollout(cluster, text, spec, traffic, out)
        _save(home, found)
        if options.keep:
            out.print(f"The service stays up: {cluster.url} (Ctrl-C ends it)")
            wait_for_interrupt()
    out.print(Rule("Report"))
    out.print(terminal.report(found))
    checks = _checks(spec, found, traffic.report, cluster.settings, options)
    out.print(Rule("Checks"))
    for holds, claim in checks:
        mark = ("ok    ", "green") if holds else ("FAILED", "bold red")
        out.print(Text.assemble("  ", mark, f" {claim}"))
    out.print(f"{time.monotonic() - began_s:.0f} s in all; report and page data in {home}")
    return 0 if all(holds for holds, _ in checks) else 1


class Traffic(threading.Thread):
    """Visitors who use the service over HTTP until they are told to stop. They know nothing of arms."""

    def __init__(self, cluster: Cluster, prepared: Prepared, options: DemoOptions) -> None:
        super().__init__(name="traffic", daemon=True)
        self._cluster, self._options = cluster, options
        self._visitors = Visitors(prepared.split, options.seed)
        self._over = threading.Event()
        self._report: TrafficReport | None = None

    def run(self) -> None:
        options = TrafficOptions(visitors=None, rate_per_s=self._options.rate_per_s, seed=self._options.seed)
        token = self._cluster.tokens["events"]
        coming = simulate(self._cluster.url, token, self._visitors, options, None, self._over.is_set)
        self._report = asyncio.run(coming)

    def stop(self) -> None:
        """Let those who are on the page finish."""
        self._over.set()
        self.join()

    @property
    def report(self) -> TrafficReport:
        """What was sent. Raises ConfigurationError when the traffic broke down."""
        if self._report is None:
            raise ConfigurationError("the simulated traffic broke down; the log above says why")
        return self._report


def prepared_for(home: Path, options: DemoOptions, out: Console) -> Prepared:
    """Checkpoints, made now or earlier, with what is known of them on the screen."""
    out.print(Rule("Model"))
    with terminal.progress_bar(out) as bar:
        task = bar.add_task("training", total=None, visible=False, note="")

        def advance(step: int, steps: int, loss: float) -> None:
            bar.update(task, completed=step, total=steps, visible=True, note=f"loss {loss:.3f}")

        prepared = prepare(
            home,
            options.seed,
            lambda line: out.print(f"  {line}"),
            advance,
            data_path=options.data_path,
            with_fault=options.rollback,
        )
    out.print(terminal.quality(prepared))
    for name in prepared.parity:
        out.print(terminal.quantization(name, prepared.quantization[name]))
        out.print(terminal.agreement(name, prepared.parity[name]))
    return prepared


def _rollout(cluster: Cluster, text: str, spec: ExperimentSpec, traffic: Traffic, out: Console) -> dict[str, Any]:
    """Create, start, watch until it is decided. Returns the last report."""
    with ApiClient(cluster.url, cluster.tokens["operate"]) as api:
        api.create_experiment(text)
        traffic.start()
        api.action(spec.key, "start", "the demo begins")
        out.print(f"  page: {cluster.url}/experiments/{spec.key}   token: {cluster.tokens['operate']}")
        seen = 0
        deadline = time.monotonic() + spec.max_duration_s + 60
        while True:
            found = api.report(spec.key)
            for decision in found["decisions"]:
                changed = (decision["step_before"], decision["state_before"]) != (
                    decision["step_after"],
                    decision["state_after"],
                )
                if decision["look"] > seen and changed:
                    seen = decision["look"]
                    out.print("  " + terminal.step_line(decision, found["steps"]), soft_wrap=True)
            if State(found["state"]).is_final or time.monotonic() > deadline:
                break
            if not traffic.is_alive():
                break
            time.sleep(1.0)
        traffic.stop()
        return api.report(spec.key) | {"timeseries": api.timeseries(spec.key)}


def _checks(
    spec: ExperimentSpec, found: Mapping[str, Any], sent: TrafficReport, settings: Settings, options: DemoOptions
) -> list[tuple[bool, str]]:
    wanted = State.ROLLED_BACK if options.rollback else State.PROMOTED
    counts = SqlEventLog(create_engine(settings.sql_url)).counts()
    stored = sum(counts[kind] for kind in ROWS) + counts["duplicates"]
    ids = [f"v{number:06d}" for number in range(CHECKED_VISITORS)]
    digest, changed = assignment(spec, ids)
    wrong = sum(arm != arm_at_full_width(spec, user) for user, arms in sent.arms_by_user.items() for arm in arms)
    refused = sum(sent.refused.values())
    return [
        (found["state"] == wanted.value, f"the gate ended the rollout by itself: {found['state']}"),
        (sent.failures == 0, f"{sent.requests:,} requests, {sent.failures} without an answer"),
        (
            sent.sent == sent.accepted + refused,
            f"events: {sent.sent:,} sent = {sent.accepted:,} accepted + {refused:,} refused",
        ),
        (stored == sent.accepted, f"events: {sent.accepted:,} accepted, {stored:,} in SQL after the clean stop"),
        (counts["served"] == sent.requests, f"exposures: {sent.requests:,} answered, {counts['served']:,} in SQL"),
        (
            wrong == 0,
            f"{len(sent.arms_by_user):,} visitors met in the experiment, {wrong} not in the arm of their hash",
        ),
        (
            changed == 0,
            f"{len(ids):,} visitors at {len(spec.ramp.steps)} coverages: {changed} change arm; assignment {digest}",
        ),
    ]


def assignment(spec: ExperimentSpec, user_ids: Sequence[str]) -> tuple[str, int]:
    """(digest of every user's arm at every coverage, how many users ever change arm). The same for the same spec."""
    digest, changed = hashlib.sha256(), 0
    for user in user_ids:
        arms = [_arm(spec, step.coverage, user) for step in spec.ramp.steps]
        changed += len({arm for arm in arms if arm is not None}) > 1
        digest.update(json.dumps([user, arms]).encode())
    return digest.hexdigest()[:16], changed


def arm_at_full_width(spec: ExperimentSpec, user_id: str) -> str | None:
    """The only arm that a user can ever get in a run."""
    return _arm(spec, spec.ramp.steps[-1].coverage, user_id)


def _arm(spec: ExperimentSpec, coverage: float, user_id: str) -> str | None:
    place = bucket(spec.seed or spec.key, user_id)
    return next((arm.arm for arm in arm_ranges(spec, coverage) if arm.start <= place < arm.end), None)


def _save(home: Path, found: Mapping[str, Any]) -> None:
    """Keep what the page showed, for when the service is gone."""
    (home / "report.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
