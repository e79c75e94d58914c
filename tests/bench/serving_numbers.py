"""What the serving benchmark found: the points as they were measured, and the flat numbers that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from traffic import Summary


@dataclass(slots=True)
class Found:
    """What was measured so far. points: one row per stage, load and arm."""

    about: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    forced: bool = False
    left_out: list[str] = field(default_factory=list)


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


def told(summary: Summary) -> str:
    """A summary as a line."""
    return (
        f"{summary.answered_per_s:.0f}/s, "
        f"p50 {summary.p50_ms:.0f} p95 {summary.p95_ms:.0f} p99 {summary.p99_ms:.0f} ms, "
        f"errors {summary.error_share:.1%}, fallbacks {summary.fallback_share:.1%}"
    )


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
