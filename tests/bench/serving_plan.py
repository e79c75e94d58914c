"""What the serving benchmark is to do: its sizes, its experiment, and how it fits into the time that there is."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

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


def options(about: str) -> argparse.Namespace:
    """The command line: a plan's fields, and where things go."""
    usual = Plan()
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
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
