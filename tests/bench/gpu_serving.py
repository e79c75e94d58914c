"""BF16 and FP8 behind one gateway on one GPU, end to end: load, latency, throughput, cost, and the gate's verdict.

    python tests/bench/gpu_serving.py [--quick] [--device cpu --preset tiny] [--context N] [--limit-s S] [--out FILE]

Two replicas of one random model, BF16 and FP8, share the GPU (half each); everything else is the real service: Ray
Serve, HAProxy, gateways, Valkey, SQL, the gate. First BF16 gets all the traffic, then a real experiment splits it,
then FP8, which the gate has promoted by then, gets all of it. At each stage: closed loops of rising concurrency for
the most that is answered, and open loops with arrivals fixed beforehand for the latency. Some users report clicks,
which do not depend on the arm, so the gate has something to decide on. What has not begun at --limit-s is left out.
The last line is one JSON object of flat numbers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from provenance import commit
from traffic import Job, Seen, Summary, summarised

HERE = Path(__file__).resolve().parent
KEY = "gpu-serving"
SHARES = (0.25, 0.5, 0.75, 0.9)
"""Of the most that the slower stage answers: the rates of the open loops."""

PRICE_PER_GPU_HOUR = 3.5
"""US dollars for an H100 or H200 on demand; an assumption of this benchmark, not somebody's quotation."""

WINDOW_S = 4.0
RAMP_S = 3.0
CLOSING_S = 20.0
STOP_S = 25.0
SHORTEST_S = 3.0
POINT_OVERHEAD_S = 3.0
"""What a point takes beside its load: new processes, a common start, the last answers. Rather too much."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run; see the options of the same names."""

    preset: str = "moe-4b"
    device: str = "cuda"
    items: int = 100_000
    context: int = 512
    beam: int = 512
    batch: int = 28
    batch_wait_s: float = 0.005
    gateways: int = 4
    senders: int = 3
    point_s: float = 6.0
    concurrency: tuple[int, ...] = (14, 28, 56, 112)
    reporting: float = 0.25
    timeout_s: float = 5.0
    limit_s: float = 400.0
    price: float = PRICE_PER_GPU_HOUR
    margin: float = 0.1


QUICK = {
    "items": 500, "context": 20, "beam": 32, "batch": 8, "gateways": 1, "senders": 1, "point_s": 3.0,
    "concurrency": (2, 8), "reporting": 1.0, "margin": 0.3,
}  # fmt: skip


@dataclass(slots=True)
class Found:
    """What was measured so far. points: one row per stage, load and arm."""

    about: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    forced: bool = False
    left_out: list[str] = field(default_factory=list)


class OutOfTimeError(Exception):
    """The limit came before the end."""


def specification(plan: Plan, minimum_s: float) -> str:
    """The experiment: a ramp of two steps, then at least `minimum_s` at full coverage. Far too short for production."""
    users = 50 if plan.margin > 0.2 else 500
    return yaml.safe_dump(
        {
            "key": KEY,
            "control": {"arm": "bf16", "variant": "bf16"},
            "treatments": [{"arm": "fp8", "variant": "fp8"}],
            "ramp": {
                "steps": [
                    {"coverage": 0.05, "min_users_per_arm": 2, "min_duration_s": RAMP_S},
                    {"coverage": 0.5, "min_users_per_arm": users, "min_duration_s": RAMP_S},
                ]
            },
            "exposure_window_s": WINDOW_S,
            "latency_objective_ms": 1e3 * plan.timeout_s,
            "metrics": [
                {
                    "name": "ctr",
                    "role": "guardrail",
                    "margin": plan.margin,
                    "planning": {"baseline": 0.13, "relative_sd": 0.85, "users_per_arm": 4 * users},
                }
            ],
            "limits": [{"name": "error_share", "max": 0.05, "min_requests": 50}],
            "minimums": {"users_per_arm": users, "clicks_per_arm": 20, "duration_s": minimum_s},
            "max_duration_s": 3600.0,
            "look_interval_s": 1.0,
        }
    )


def fitted(plan: Plan, left_s: float) -> Plan:
    """Shorter points, and fewer of them, where all of them would not fit into the time that is left after the start."""
    points = 3 * (len(plan.concurrency) + len(SHARES)) + 3
    point_s = (left_s - 4 * RAMP_S - CLOSING_S - 15.0) / points - POINT_OVERHEAD_S
    if point_s < SHORTEST_S and len(plan.concurrency) > 1:
        return fitted(replace(plan, concurrency=plan.concurrency[1:]), left_s)
    return replace(plan, point_s=min(plan.point_s, max(point_s, SHORTEST_S)))


class Bench:
    """The run: stages on one cluster, with one clock."""

    def __init__(self, plan: Plan, found: Found) -> None:
        self.plan, self.found = plan, found
        self._began = time.monotonic()
        self._users = itertools.count(0, 10_000_000)
        self._seeds = itertools.count(1)

    @property
    def left_s(self) -> float:
        """Until the limit, less what a clean stop takes."""
        return self.plan.limit_s - STOP_S - (time.monotonic() - self._began)

    def say(self, text: str) -> None:
        """One line of progress."""
        print(f"[{time.monotonic() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)

    def run(self, folder: Path) -> None:
        """Everything; what was measured is in `found`, however it ends."""
        from serving.api_client import ApiClient
        from serving.cluster import Cluster

        folders = self._checkpoints(folder)
        with (
            Cluster(self._settings(folder), folders, say=self.say) as cluster,
            ApiClient(cluster.url, cluster.tokens["operate"]) as api,
        ):
            self._url, self._token = cluster.url, cluster.tokens["events"]
            self.say("warming up")
            self.load(5.0, concurrency=max(self.plan.concurrency))
            self.plan = fitted(self.plan, self.left_s)
            most = self.stage("bf16 alone", ("",))
            self._experiment(api, most)
            self.found.forced = self._promoted(api)
            self.load(3.0, concurrency=max(self.plan.concurrency))
            self.stage("fp8 alone", ("",), most)
            self.found.report = api.report(KEY)

    def _checkpoints(self, folder: Path) -> dict[str, Path]:
        plan = self.plan
        script = [sys.executable, str(HERE / "random_checkpoints.py"), str(folder / "checkpoints")]
        script += ["--preset", plan.preset, "--items", str(plan.items), "--context", str(plan.context)]
        done = subprocess.run([*script, "--device", plan.device], stdout=subprocess.PIPE, text=True, check=True)
        made = json.loads(done.stdout.strip().splitlines()[-1])
        self.say(f"checkpoints in {made['seconds']:.0f} s")
        self.found.about |= {name: made[name] for name in ("gpu", "torch", "cuda", "python")}
        return {name: Path(made[name]) for name in ("bf16", "fp8")}

    def _settings(self, folder: Path) -> Any:
        from serving.embedded import free_port
        from serving.settings import Settings

        plan = self.plan
        return Settings(
            home=folder / "home",
            port=free_port(),
            gateway_replicas=plan.gateways,
            variant_gpus=0.5 if plan.device == "cuda" else 0.0,
            beam_width=plan.beam,
            batch_size=plan.batch,
            batch_wait_s=plan.batch_wait_s,
            history_max=max(plan.context, 1),
            request_max_bytes=2**16 + 16 * plan.context,
            variant_timeout_s=plan.timeout_s,
            answer_timeout_s=2 * plan.timeout_s,
        )

    def load(
        self, seconds: float, rate_per_s: float | None = None, concurrency: int = 1, reporting: float = 0.0
    ) -> Seen:
        """Send for some seconds from processes of their own; what they saw together."""
        plan, senders = self.plan, min(self.plan.senders, concurrency if rate_per_s is None else self.plan.senders)
        starts_at = time.time() + 1.0 + 0.0003 * plan.context
        children = []
        for number in range(senders):
            job = Job(
                url=self._url,
                token=self._token,
                seconds=seconds,
                starts_at=starts_at,
                items=plan.items,
                history=plan.context,
                rate_per_s=None if rate_per_s is None else rate_per_s / senders,
                concurrency=(concurrency + number) // senders,
                reporting=reporting,
                seed=next(self._seeds),
                first_user=next(self._users),
            )
            child = subprocess.Popen(
                [sys.executable, str(HERE / "traffic.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            children.append((child, json.dumps(asdict(job))))
        for child, job_text in children:
            child.stdin.write(job_text)  # type: ignore[union-attr]
            child.stdin.close()  # type: ignore[union-attr]
        together = Seen()
        for child, _ in children:
            out = child.stdout.read()  # type: ignore[union-attr]
            if child.wait():
                raise RuntimeError(f"a sender failed with exit status {child.returncode}")
            together.join(Seen(**json.loads(out.strip().splitlines()[-1])))
        return together

    def stage(self, name: str, arms: Sequence[str], most: float | None = None, reporting: float = 0.0) -> float:
        """Closed loops, then open loops at shares of `most` (its own most where None). Returns its own most."""
        plan, own = self.plan, 0.0
        for concurrency in plan.concurrency:
            if not self._in_time(f"{name}, closed loop of {concurrency}"):
                break
            seen = self.load(plan.point_s, concurrency=concurrency * len(arms), reporting=reporting)
            self._keep(name, "closed", concurrency * len(arms), seen, arms)
            own = max(own, summarised(seen, plan.point_s).answered_per_s)
        common = own if most is None else min(own, most)
        rates = [share * common for share in SHARES]
        if own > common:
            rates.append(SHARES[-1] * own)
        for rate in rates:
            if rate <= 0 or not self._in_time(f"{name}, open loop of {rate:.0f}/s"):
                break
            seen = self.load(plan.point_s, rate_per_s=rate, reporting=reporting)
            self._keep(name, "open", rate, seen, arms)
        return own

    def _keep(self, stage: str, loop: str, load: float, seen: Seen, arms: Sequence[str]) -> None:
        for arm in arms:
            summary = summarised(seen, self.plan.point_s, arm if len(arms) > 1 else None)
            if not summary.requests:
                continue
            label = arm or stage.split(maxsplit=1)[0]
            row = {"stage": stage, "arm": label, "loop": loop, "load": round(load, 1)} | asdict(summary)
            self.found.points.append(row)
            self.say(f"{stage}: {label}, {loop} {load:.0f}: {told(summary)}")

    def _in_time(self, what: str) -> bool:
        if self.left_s > self.plan.point_s + POINT_OVERHEAD_S:
            return True
        self.found.left_out.append(what)
        return False

    def _experiment(self, api: Any, most: float) -> None:
        """Split the traffic, widen, load, and leave the gate the time that it needs."""
        plan = self.plan
        loaded_s = (len(plan.concurrency) + len(SHARES) + 1) * (plan.point_s + POINT_OVERHEAD_S)
        if self.left_s < 4 * RAMP_S + plan.point_s + CLOSING_S:
            self.found.left_out.append("the experiment")
            return
        api.create_experiment(specification(plan, min(loaded_s, self.left_s / 2)))
        api.action(KEY, "start", "the benchmark begins")
        until = time.monotonic() + 30.0
        while api.status(KEY)["step"] < 1 and time.monotonic() < until and self.left_s > CLOSING_S:
            self.load(3.0, rate_per_s=most / 3, reporting=max(plan.reporting, 0.5))
        self.say(f"the ramp stands at {api.status(KEY)['coverage']:.0%} in each arm")
        time.sleep(1.0)
        self.stage("both", ("bf16", "fp8"), reporting=plan.reporting)
        until = time.monotonic() + 60.0
        while api.report(KEY)["state"] == "running" and time.monotonic() < until and self.left_s > CLOSING_S:
            self.load(4.0, rate_per_s=most / 3, reporting=1.0)
        self.found.report = api.report(KEY)
        self.say(f"the gate: {self.found.report['state']}")

    def _promoted(self, api: Any) -> bool:
        """Make FP8 everybody's, by hand where the gate has not; whether it was by hand."""
        if not self.found.report or self.found.report["state"] == "promoted":
            return False
        if self.found.report["state"] not in {"running", "paused"}:
            self.found.left_out.append("fp8 alone: the gate rolled it back")
            raise OutOfTimeError("rolled back")
        api.action(KEY, "promote", "the gate had not decided when the benchmark had to go on", arm="fp8")
        time.sleep(2.0)
        return True


def told(summary: Summary) -> str:
    """A summary as a line."""
    return (
        f"{summary.answered_per_s:.0f}/s, "
        f"p50 {summary.p50_ms:.0f} p95 {summary.p95_ms:.0f} p99 {summary.p99_ms:.0f} ms, "
        f"errors {summary.error_share:.1%}, fallbacks {summary.fallback_share:.1%}"
    )


def numbers(found: Found, price: float) -> dict[str, Any]:
    """The flat result.

    ARM_queries_per_s: the most that the arm alone answered in a closed loop; cost_per_1000 follows from it.
    ARM_p50_ms …: of the arm alone in the open loop at half of what BF16 alone answers, the same rate for both.
    ARM_split_…: of the same in the experiment, where both load the GPU at once. verdict: the gate's.
    """
    out: dict[str, Any] = {}
    for arm in ("bf16", "fp8"):
        alone = [point for point in found.points if point["stage"] == f"{arm} alone"]
        if closed := [point["answered_per_s"] for point in alone if point["loop"] == "closed"]:
            out[f"{arm}_queries_per_s"] = max(closed)
            out[f"{arm}_cost_per_1000"] = cost_per_1000(max(closed), price)
        split = [point for point in found.points if point["stage"] == "both" and point["arm"] == arm]
        for prefix, points in ((arm, alone), (f"{arm}_split", split)):
            opened = [point for point in points if point["loop"] == "open"]
            if opened:
                point = opened[min(1, len(opened) - 1)]
                out |= {f"{prefix}_{name}": point[name] for name in ("p50_ms", "p95_ms", "p99_ms")}
                out[f"{prefix}_rate_per_s"] = point["load"]
        shares = [(p["requests"], p["error_share"], p["fallback_share"]) for p in alone + split]
        asked = sum(requests for requests, _, _ in shares)
        if asked:
            out[f"{arm}_error_share"] = sum(requests * error for requests, error, _ in shares) / asked
            out[f"{arm}_fallback_share"] = sum(requests * fallback for requests, _, fallback in shares) / asked
    if together := [point for point in found.points if point["stage"] == "both" and point["loop"] == "closed"]:
        by_load = {load: [p for p in together if p["load"] == load] for load in {p["load"] for p in together}}
        out["both_queries_per_s"] = max(sum(p["answered_per_s"] for p in points) for points in by_load.values())
    if {"bf16_queries_per_s", "fp8_queries_per_s"} <= out.keys() and out["bf16_queries_per_s"] > 0:
        out["fp8_over_bf16"] = out["fp8_queries_per_s"] / out["bf16_queries_per_s"]
    if found.report:
        out["verdict"] = "promoted by hand" if found.forced else str(found.report["state"])
        out["users"] = sum(int(arm["users"]) for arm in found.report["arms"])
        for metric in found.report["metrics"]:
            out |= {f"ctr_{name}": metric[name] for name in ("effect", "low", "high") if metric.get(name) is not None}
    known = {name: value for name, value in out.items() if not (isinstance(value, float) and math.isnan(value))}
    return known | {"price_per_gpu_hour": price} | found.about


def cost_per_1000(queries_per_s: float, price_per_hour: float) -> float | None:
    """What a thousand answers cost while the GPU is busy; None where nothing was answered."""
    return price_per_hour / 3600 * 1000 / queries_per_s if queries_per_s > 0 else None


def table(points: Sequence[Mapping[str, Any]]) -> str:
    """All points as Markdown."""
    lines = [
        "| stage | arm | loop | load | answered/s | p50 ms | p95 ms | p99 ms | errors | fallbacks |",
        "|---" * 10 + "|",
    ]
    for point in points:
        unit = "under way" if point["loop"] == "closed" else "/s"
        lines.append(
            f"| {point['stage']} | {point['arm']} | {point['loop']} | {point['load']:.0f} {unit} "
            f"| {point['answered_per_s']:.0f} | {point['p50_ms']:.0f} | {point['p95_ms']:.0f} | {point['p99_ms']:.0f} "
            f"| {point['error_share']:.2%} | {point['fallback_share']:.2%} |"
        )
    return "\n".join(lines)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in the main thread after some seconds, whatever it waits for."""

    def ring(_signal: int, _frame: object) -> None:
        raise OutOfTimeError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def options() -> argparse.Namespace:
    usual = Plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and short: for a look at everything")
    parser.add_argument("--out", type=Path, help="write everything here as JSON")
    parser.add_argument("--home", type=Path, help="keep checkpoints and the service's home here")
    parser.add_argument("--preset", help=f"of the model ({usual.preset})")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--items", type=int, help="in the synthetic catalogue")
    parser.add_argument("--context", type=int, help="items of a request's history")
    parser.add_argument("--beam", type=int)
    parser.add_argument("--batch", type=int, help="requests that a replica answers at once")
    parser.add_argument("--batch-wait-s", type=float)
    parser.add_argument("--gateways", type=int)
    parser.add_argument("--senders", type=int, help="load-generating processes")
    parser.add_argument("--point-s", type=float, help="of each load")
    parser.add_argument("--concurrency", type=int, nargs="+", help="of the closed loops, for each arm")
    parser.add_argument("--reporting", type=float, help="share of users who report clicks")
    parser.add_argument("--timeout-s", type=float, help="of one call to an arm")
    parser.add_argument("--limit-s", type=float, help="what has not begun by then is left out")
    parser.add_argument("--price", type=float, help=f"US dollars per GPU hour ({usual.price})")
    return parser.parse_args()


def main() -> None:
    args = options()
    asked = {name: value for name, value in vars(args).items() if name in Plan.__slots__ and value is not None}
    if "concurrency" in asked:
        asked["concurrency"] = tuple(asked["concurrency"])
    plan = Plan(**({**QUICK, **asked} if args.quick else asked))
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")  # a bare host compiles its imports first
    os.environ.setdefault("RAY_SERVE_HAPROXY_NBTHREAD", str(max(1, min(4, (os.cpu_count() or 1) // 4))))
    found = Found(about={"commit": commit(), "command": shlex.join(["python", *sys.argv])})
    bench = Bench(plan, found)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with alarm(plan.limit_s - STOP_S):
                bench.run(args.home or Path(scratch))
        except OutOfTimeError as error:
            found.left_out.append(str(error))
        except Exception as error:  # what was measured before must not be lost
            found.left_out.append(f"{type(error).__name__}: {error}")
            import traceback

            traceback.print_exc()
    flat = numbers(found, plan.price)
    print(table(found.points))
    for line in found.left_out:
        print(f"\nleft out: {line}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        kept = {"numbers": flat, "plan": asdict(bench.plan), "points": found.points, "left_out": found.left_out}
        args.out.write_text(json.dumps(kept | {"report": found.report}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(flat))


if __name__ == "__main__":
    main()
