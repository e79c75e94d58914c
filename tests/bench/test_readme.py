"""No figure of the README differs from the result that it was made from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.bench import readme
from tests.bench.readme import README, RESULTS, filled


def test_the_readmes_tables_are_those_of_the_results() -> None:
    text = README.read_text()
    assert filled(text) == text, "run python tests/bench/readme.py"


def test_a_changed_result_changes_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(name: str) -> dict[str, object]:
        found = json.loads((RESULTS / f"{name}.json").read_text())
        found["sections"]["moe fp8"]["latency_ms"] = 12.34
        return dict(found)

    monkeypatch.setattr(readme, "load", other)
    text = "<!-- table decode-h200 -->\nold\n<!-- end -->\n"
    assert "| 12.3 |" in filled(text)
    assert "old" not in filled(text)


def test_a_result_that_is_not_there_yet_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    text = readme.serving("gpu_serving-h200")
    assert text == (
        "Not measured yet: `python tests/bench/gpu_serving.py --out tests/bench/results/gpu_serving-h200.json`\n"
    )


def test_the_table_of_the_service_has_both_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"gpu": "some GPU", "price_per_gpu_hour": 3.5, "verdict": "promoted", "fp8_split_p50_ms": 9.0}
    for arm, most in (("bf16", 200.0), ("fp8", 300.0)):
        numbers |= {f"{arm}_queries_per_s": most, f"{arm}_cost_per_1000": 1 / most, f"{arm}_rate_per_s": 100.0}
        numbers |= {f"{arm}_{quantile}_ms": most / 10 for quantile in ("p50", "p95", "p99")}
        numbers |= {f"{arm}_split_rate_per_s": 150.0, f"{arm}_error_share": 0.001, f"{arm}_fallback_share": 0.0}
    plan = {"preset": "moe-4b", "context": 3072, "beam": 512, "items": 100_000}
    (tmp_path / "x.json").write_text(json.dumps({"numbers": numbers, "plan": plan}))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    text = readme.serving("x")
    assert "| the most, alone, answers/s | 200 | 300 |" in text
    assert "| p95, alone, at 100/s, ms | 20 | 30 |" in text
    assert "| p50, both in the experiment, at 150/s, ms | – | 9 |" in text
    assert "| errors | 0.10% | 0.10% |" in text
    assert "verdict: promoted" in text


def test_a_table_that_nobody_makes_is_an_error() -> None:
    with pytest.raises(KeyError, match="unheard"):
        filled("<!-- table unheard -->\n<!-- end -->\n")


def test_every_result_that_the_readme_links_is_kept() -> None:
    linked = re.findall(r"\(tests/bench/results/([^)]+)\)", README.read_text())
    assert linked
    for name in linked:
        assert (RESULTS / name).is_file(), name
