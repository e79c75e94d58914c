"""The headline of the decode benchmark follows from its sections, and from nothing that did not run."""

from __future__ import annotations

import pytest
from decode import dense_rates, peak_share, ratios

KERNELS = {"fp8 linear 8192x8192x8192": 1000.0, "fp8 linear 1024x1024x1024": 10.0, "bf16 linear 8192x8192x8192": 1.0}


def test_the_peak_is_that_of_the_best_dense_product() -> None:
    assert dense_rates(KERNELS, "fp8") == pytest.approx([2 * 8192**3 / 1e9, 2 * 1024**3 / 1e7])
    found = {"8b fp8": {"tflop": 55.0, "latency_ms": 100.0}, "ceilings": KERNELS}
    assert peak_share(found, "8b") == pytest.approx(550.0 / (2 * 8192**3 / 1e9))
    assert ratios(found).keys() == {"fp8_peak_share_8b"}
    found["ceilings"] = KERNELS | {"fp8 sustained linear 8192x8192x8192": 1250.0}
    assert ratios(found)["fp8_sustained_share_8b"] == pytest.approx(1.25 * ratios(found)["fp8_peak_share_8b"])


@pytest.mark.parametrize(
    "found", [{}, {"ceilings": KERNELS}, {"8b fp8": {"tflop": 1.0, "latency_ms": 1.0}}, {"8b fp8": {"latency_ms": 1.0}}]
)
def test_no_share_without_both_figures(found: dict[str, dict[str, float]]) -> None:
    assert peak_share(found, "8b") is None
    assert "fp8_peak_share_8b" not in ratios(found)


def test_every_arm_of_the_mixture_is_in_the_headline() -> None:
    found = {f"moe {arm}": {"queries_per_s": 1.0, "latency_ms": ms} for arm, ms in (("fp8", 50.0), ("torchao", 75.0))}
    found["moe fp8"]["after_pause_ms"] = 45.0
    assert ratios(found)["torchao_latency_ms"] == 75.0
    assert ratios(found)["fp8_latency_ms"] == 50.0
    assert ratios(found)["fp8_after_pause_ms"] == 45.0
    assert "torchao_after_pause_ms" not in ratios(found)
    assert ratios(found)["fp8_over_torchao"] == 1.5
