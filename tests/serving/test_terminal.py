"""What is printed says what is true, in full: no bracket, path or number is lost between the report and the screen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from model.evaluate import Accuracy
from serving import terminal
from serving.pipeline import Prepared, Quality

TRICKY = "cost [red]review[/] see [/docs] and [x] :warning: \\[y]"
"""Markup that is none: an unmatched closing tag would even be an error."""

STEPS: list[dict[str, Any]] = [
    {"coverage": 0.01, "reached_at": "2026-11-23T12:34:56+00:00", "reason": "the run started"},
    {"coverage": 0.125, "reached_at": "2026-11-23T13:00:00+00:00", "reason": TRICKY},
    {"coverage": 0.5, "reached_at": None, "reason": None},
]


def reading(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "users": 10}


def arm(name: str, is_control: bool, **changes: Any) -> dict[str, Any]:
    counts = {"users": 12345, "closed_users": 12000, "requests": 20000.0, "impressions": 200000.0, "clicks": 9876.0}
    bad = {"failed": 7.0, "fallbacks": 4.0, "slow": 13.0}
    readings = {"ctr": reading(0.04938, 0.04, 0.06)}
    return {"arm": name, "is_control": is_control, "readings": readings} | counts | bad | changes


def metric(**changes: Any) -> dict[str, Any]:
    found = {"metric": "ctr", "arm": "fp8", "role": "guardrail", "margin": 0.02, "effect": 0.0123, "low": -0.01}
    return found | {"high": None, "bound": -0.0098, "share_of_evidence": 0.42} | changes


def report(**changes: Any) -> dict[str, Any]:
    return {
        "key": "fp8-vs-bf16",
        "run": 2,
        "looks": 17,
        "spec_digest": "0123456789abcdef",
        "state": "rolled_back",
        "coverage": 0.125,
        "outlook": [{"text": "30 days to go [see]"}],
        "arms": [arm("fp8", False), arm("bf16", True)],
        "metrics": [metric()],
        "limits": [{"name": "error_share", "arm": "fp8", "value": 0.0155, "max": 0.02}],
        "srm": {"state": "ok", "p_value": 0.8},
        "reasons": [{"code": "harm", "text": TRICKY}],
        "steps": STEPS,
    } | changes


def printed(what: RenderableType, monkeypatch: pytest.MonkeyPatch, columns: int = 200) -> str:
    """As it lands in a file or a pipe."""
    monkeypatch.setenv("COLUMNS", str(columns))
    out = terminal.console()
    out.file = io.StringIO()
    out.print(what)
    return out.file.getvalue()


def test_what_people_wrote_is_printed_as_they_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(terminal.report(report()), monkeypatch)
    assert text.count(TRICKY) == 2, "as the reason of a step and as that of the verdict"
    assert f"[harm] {TRICKY}" in text
    assert "30 days to go [see]" in text


def test_a_line_of_the_ramp_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = {"look": 3, "verdict": "advance", "state_before": "running", "state_after": "running"}
    decision |= {"step_before": 0, "step_after": 1, "reasons": [{"text": TRICKY}, {"text": "[b]"}]}
    line = terminal.step_line(decision, STEPS)
    assert line.endswith(f"12.5 % an arm  {TRICKY}; [b]")
    assert "advance" in line
    assert line in printed("  " + line, monkeypatch)


def test_a_change_of_state_outranks_the_verdict_in_a_line() -> None:
    decision = {"look": 3, "verdict": "rollback", "state_before": "running", "state_after": "rolled_back"}
    decision |= {"step_before": 1, "step_after": 1, "reasons": [{"text": "harm"}]}
    assert "running → rolled_back" in terminal.step_line(decision, STEPS)


@pytest.mark.parametrize(("columns", "least"), [(40, 120), (80, 120), (300, 300)])
def test_a_pipe_gets_lines_wide_enough_for_tables(monkeypatch: pytest.MonkeyPatch, columns: int, least: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert terminal.console().width == least


def test_a_report_names_every_number_of_an_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(terminal.report(report()), monkeypatch)
    row = next(line for line in text.splitlines() if "bf16 (control)" in line)
    for number in ("12,345", "12,000", "20,000", "200,000", "9,876", "4.94 %", "4.00 % … 6.00 %", "11", "13"):
        assert number in row
    assert "fp8-vs-bf16, run 2: 17 looks, specification 0123456789ab" in text


def test_a_report_shows_effects_margins_limits_and_their_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    quality = metric(metric="likes", role="quality", margin=None, effect=None, low=None, bound=None)
    text = printed(terminal.report(report(metrics=[metric(), quality])), monkeypatch)
    ctr = next(line for line in text.splitlines() if " ctr " in line)
    for part in ("guardrail", "+1.23 %", "-1.00 % … –", "-0.98 %", "±2 %", "42 %"):
        assert part in ctr
    likes = next(line for line in text.splitlines() if " likes " in line)
    assert "%" not in likes
    hard = next(line for line in text.splitlines() if "error_share" in line)
    assert "1.55 %" in hard
    assert "2 %" in hard


def test_a_report_of_a_run_without_a_look_is_all_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = [arm("fp8", False, readings={}), arm("bf16", True, readings={})]
    text = printed(terminal.report(report(arms=empty, metrics=[], limits=[], reasons=[])), monkeypatch)
    assert "– … –" in text


def test_steps_say_when_and_why_or_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(terminal.report(report()), monkeypatch).splitlines()
    assert any("1 %" in line and "12:34:56" in line and "the run started" in line for line in lines)
    assert any("12.5 %" in line and "13:00:00" in line for line in lines)
    assert any("50 %" in line and "–" in line for line in lines)


@pytest.mark.parametrize("state", [*terminal.STYLES, "draft"])
def test_every_state_can_be_the_verdict(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    text = printed(terminal.verdict(report(state=state)), monkeypatch)
    assert f"state: {state}" in text
    assert "sample ratio: ok (always-valid p = 0.8)" in text


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [(None, True, "–"), (0.0, True, "+0.00 %"), (-0.01234, True, "-1.23 %"), (0.5, False, "50.00 %")],
)
def test_percent(value: float | None, signed: bool, text: str) -> None:
    assert terminal.percent(value, signed) == text


def test_quality_shows_every_recommender_on_the_same_users(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(
        Quality(name, Accuracy(hit, hit / 2, 10, 943, 0.25)) for name, hit in (("popularity", 0.1), ("fp8", 0.2))
    )
    prepared = Prepared(split=None, checkpoints={}, quality=rows, quantization={}, parity={})  # type: ignore[arg-type] # not shown
    text = printed(terminal.quality(prepared), monkeypatch)
    assert "943 users" in text
    for part in ("popularity", "0.1000", "0.0500", "fp8", "0.2000", "25.0 %", "HR@10", "NDCG@10"):
        assert part in text


def test_quantization_shows_a_dash_where_nothing_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = {"layer": "blocks.0.q", "weight_sqnr_db": 31.25, "activation_sqnr_db": None, "output_sqnr_db": 28.0}
    found = {"recipe": "e4m3", "histories": 64, "layers": [layer | {"lost": 0.015}]}
    text = printed(terminal.quantization("fp8", found), monkeypatch)
    row = next(line for line in text.splitlines() if "blocks.0.q" in line)
    for part in ("31.2", "–", "28.0", "1.5 %"):
        assert part in row


def test_agreement_shows_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = {"name": "fp8 with bf16", "overlap": 0.904, "top1_changed": 0.08, "rank_biased_overlap": 0.8768}
    text = printed(terminal.agreement("fp8", {"agreements": [pair]}), monkeypatch)
    for part in ("fp8 with bf16", "90.4 %", "8.0 %", "0.877"):
        assert part in text


def test_nothing_lies_ahead_of_a_run_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "30 days to go" not in printed(terminal.report(report(coverage=0.0)), monkeypatch)


def test_a_folder_with_brackets_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("/data/[bold]models[/bold]/fp8")
    assert str(folder) in printed(f"fp8: {folder}", monkeypatch)


def test_the_progress_bar_shows_its_note() -> None:
    out = Console(file=io.StringIO(), force_terminal=True, width=120, highlight=False)
    with terminal.progress_bar(out) as bar:
        bar.add_task("training", total=4, completed=1, note="loss 1.234")
        bar.refresh()
    assert "loss 1.234" in out.file.getvalue()  # type: ignore[attr-defined] # it is a StringIO


def test_a_report_tells_of_triggered_users_where_slates_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"text": ["10 % of 40 users [see]"], "srm": {"state": "warn", "p_value": 0.00123}}
    text = printed(terminal.report(report(triggered=shown)), monkeypatch)
    assert "10 % of 40 users [see]" in text
    assert "sample ratio of them: warn (always-valid p = 0.00123)" in text
    assert "sample ratio of them" not in printed(terminal.report(report(triggered=None)), monkeypatch)
