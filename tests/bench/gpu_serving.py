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

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from provenance import commit
from serving_clock import Clock, OutOfTimeError, alarm
from serving_load import HERE, Load
from serving_numbers import Found, numbers, table, told
from serving_plan import CLOSING_S, KEY, POINT_OVERHEAD_S, QUICK, RAMP_S, SHARES, Plan, fitted, options, specification
from serving_progress import ReplicaLog
from traffic import Seen, summarised

STOP_S = 25.0
"""Of the limit, for a clean stop."""


class Bench:
    """The run: stages on one cluster, with one clock."""

    def __init__(self, plan: Plan, found: Found) -> None:
        self.plan, self.found = plan, found
        self._clock = Clock(plan.limit_s, STOP_S)
        self.say = self._clock.say

    def run(self, folder: Path) -> None:
        """Everything; what was measured is in `found`, however it ends."""
        from serving.api_client import ApiClient
        from serving.cluster import Cluster

        folders = self._checkpoints(folder)
        with (
            ReplicaLog(self.say),
            Cluster(self._settings(folder), folders, say=self.say) as cluster,
            ApiClient(cluster.url, cluster.tokens["operate"]) as api,
        ):
            self._send = Load(cluster.url, cluster.tokens["events"], self.plan).send
            self.say("warming up")
            self._send(5.0, concurrency=max(self.plan.concurrency))
            self.plan = fitted(self.plan, self._clock.left_s)
            most = self.stage("bf16 alone", ("",))
            self._experiment(api, most)
            self.found.forced = self._promoted(api)
            self._send(3.0, concurrency=max(self.plan.concurrency))
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

    def stage(self, name: str, arms: Sequence[str], most: float | None = None, reporting: float = 0.0) -> float:
        """Closed loops, then open loops at shares of `most` (its own most where None). Returns its own most."""
        plan, own = self.plan, 0.0
        for concurrency in plan.concurrency:
            if not self._in_time(f"{name}, closed loop of {concurrency}"):
                break
            seen = self._send(plan.point_s, concurrency=concurrency * len(arms), reporting=reporting)
            self._keep(name, "closed", concurrency * len(arms), seen, arms)
            own = max(own, summarised(seen, plan.point_s).answered_per_s)
        common = own if most is None else min(own, most)
        rates = [share * common for share in SHARES]
        if own > common:
            rates.append(SHARES[-1] * own)
        for rate in rates:
            if rate <= 0 or not self._in_time(f"{name}, open loop of {rate:.0f}/s"):
                break
            seen = self._send(plan.point_s, rate_per_s=rate, reporting=reporting)
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
        if self._clock.left_s > self.plan.point_s + POINT_OVERHEAD_S:
            return True
        self.found.left_out.append(what)
        return False

    def _experiment(self, api: Any, most: float) -> None:
        """Split the traffic, widen, load, and leave the gate the time that it needs."""
        plan = self.plan
        loaded_s = (len(plan.concurrency) + len(SHARES) + 1) * (plan.point_s + POINT_OVERHEAD_S)
        if self._clock.left_s < 4 * RAMP_S + plan.point_s + CLOSING_S:
            self.found.left_out.append("the experiment")
            return
        api.create_experiment(specification(plan, min(loaded_s, self._clock.left_s / 2)))
        api.action(KEY, "start", "the benchmark begins")
        until = time.monotonic() + 30.0
        while api.status(KEY)["step"] < 1 and time.monotonic() < until and self._clock.left_s > CLOSING_S:
            self._send(3.0, rate_per_s=most / 3, reporting=max(plan.reporting, 0.5))
        self.say(f"the ramp stands at {api.status(KEY)['coverage']:.0%} in each arm")
        time.sleep(1.0)
        self.stage("both", ("bf16", "fp8"), reporting=plan.reporting)
        until = time.monotonic() + 60.0
        while api.report(KEY)["state"] == "running" and time.monotonic() < until and self._clock.left_s > CLOSING_S:
            self._send(4.0, rate_per_s=most / 3, reporting=1.0)
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


def main() -> None:
    args = options(__doc__ or "")
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
