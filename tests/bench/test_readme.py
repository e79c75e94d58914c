"""No figure of the README differs from the result that it was made from."""

from __future__ import annotations

import json
import re

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


def test_a_table_that_nobody_makes_is_an_error() -> None:
    with pytest.raises(KeyError, match="unheard"):
        filled("<!-- table unheard -->\n<!-- end -->\n")


def test_every_result_that_the_readme_links_is_kept() -> None:
    linked = re.findall(r"\(tests/bench/results/([^)]+)\)", README.read_text())
    assert linked
    for name in linked:
        assert (RESULTS / name).is_file(), name
