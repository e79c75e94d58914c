"""Charts: well-formed whatever the numbers are, inside their frame, true to the points, and safe to put on a page."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, confidence_sequence, intervals

SVG = "{http://www.w3.org/2000/svg}"


def point(
    look: int, effect: float | None = 0.0, low: float | None = -0.1, high: float | None = 0.1, **more: Any
) -> Any:
    fields = {"look": look, "effect": effect, "low": low, "high": high, "margin": 0.05, "coverage": 0.01}
    return fields | more


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 - our own text


def pairs(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


def one(root: ET.Element, tag: str, kind: str) -> ET.Element:
    found = [element for element in root.iter(SVG + tag) if element.get("class") == kind]
    assert len(found) == 1
    return found[0]


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(SVG + "text")]


def test_a_scale_is_linear_and_clips() -> None:
    scale = Scale(0.0, 10.0, 100.0, 0.0)
    assert [scale(value) for value in (0, 2.5, 10, -3, 99)] == [100, 75, 0, 100, 0]


@given(st.floats(-1e3, 1e3), st.floats(1e-6, 1e3), st.integers(2, 10))
def test_ticks_lie_inside(low: float, width: float, most: int) -> None:
    ticks = Scale(low, low + width, 0, 1).ticks(most)
    assert all(low <= tick <= low + width for tick in ticks)
    assert ticks == sorted(ticks)
    assert len(ticks) <= most + 1


@pytest.mark.parametrize("points", [[], [point(1)], [point(1), point(2, effect=None)]])
def test_too_few_points_are_called_that(points: list[Any]) -> None:
    assert "no limits yet" in texts(parsed(confidence_sequence(points, "ctr")))


def test_the_line_and_the_band_go_through_the_points() -> None:
    points = [point(look, 0.02 * look, 0.02 * look - 0.1, 0.02 * look + 0.1) for look in range(1, 6)]
    root = parsed(confidence_sequence(points, "ctr"))
    line = pairs(one(root, "polyline", "estimate").get("points") or "")
    assert [x for x, _ in line] == pytest.approx([64, 234, 404, 574, 744])
    assert all(later < earlier for (_, earlier), (_, later) in pairwise(line)), "up is more"
    band = pairs(one(root, "polygon", "band").get("points") or "")
    assert len(band) == 10
    upper, lower = band[:5], band[:4:-1]
    for (x, y), (x_high, y_high), (x_low, y_low) in zip(line, upper, lower, strict=True):
        assert x == x_high == x_low
        assert y_high < y < y_low


@pytest.mark.parametrize(("increasing", "label"), [(True, "margin -5 %"), (False, "margin +5 %")])
def test_the_margin_lies_on_the_harmful_side(increasing: bool, label: str) -> None:
    root = parsed(confidence_sequence([point(1), point(2)], "ctr", increasing=increasing))
    assert label in texts(root)
    zero, margin = (float(one(root, "line", kind).get("y1") or "nan") for kind in ("zero", "margin"))
    assert (margin > zero) is increasing, "pixels grow downwards"


def test_no_margin_no_line() -> None:
    root = parsed(confidence_sequence([point(1, margin=None), point(2, margin=None)], "likes"))
    assert not any(element.get("class") == "margin" for element in root.iter())


def test_every_step_of_the_ramp_is_marked_where_it_began() -> None:
    coverages = [0.01, 0.01, 0.05, 0.05, 0.5]
    points = [point(look, coverage=share) for look, share in enumerate(coverages, start=1)]
    root = parsed(confidence_sequence(points, "ctr"))
    steps = [element for element in root.iter(SVG + "line") if element.get("class") == "step"]
    assert [float(step.get("x1") or "nan") for step in steps] == pytest.approx([64, 404, 744])
    assert [text for text in texts(root) if text in {"1 %", "5 %", "50 %"}] == ["1 %", "5 %", "50 %"]


def test_who_does_not_see_it_is_told_the_newest_limits() -> None:
    points = [point(1), point(7, 0.0123, -0.02, None)]
    root = parsed(confidence_sequence(points, "click-through rate of fp8"))
    assert root.findtext(SVG + "title") == "click-through rate of fp8"
    assert root.findtext(SVG + "desc") == "after look 7: +1.2 %, limits -2.0 % to unbounded"


limit = st.one_of(st.none(), st.floats(-1e6, 1e6))
looks = st.lists(
    st.tuples(st.one_of(st.none(), st.floats(-1e3, 1e3)), limit, limit, st.sampled_from([0.01, 0.5])), max_size=12
)


@given(looks, st.one_of(st.none(), st.floats(0.001, 0.9)), st.booleans())
def test_whatever_was_measured_is_drawn_inside_the_frame(
    rows: list[Any], margin: float | None, increasing: bool
) -> None:
    points = [
        point(3 * look, effect, low, high, margin=margin, coverage=share)
        for look, (effect, low, high, share) in enumerate(rows)
    ]
    svg = confidence_sequence(points, "t", increasing=increasing)
    assert not re.search(r"\b(nan|inf)\b", svg)
    root = parsed(svg)
    for element in root.iter():
        for x, y in pairs(element.get("points") or ""):
            assert LEFT <= x <= WIDTH - RIGHT
            assert TOP <= y <= HEIGHT - BOTTOM
        for name in ("x1", "x2"):
            assert LEFT <= float(element.get(name, LEFT)) <= WIDTH - RIGHT
        for name in ("y1", "y2"):
            assert TOP <= float(element.get(name, TOP)) <= HEIGHT - BOTTOM


def reading(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def test_intervals_have_a_line_an_arm() -> None:
    root = parsed(intervals([("fp8", reading(0.05, 0.04, 0.06)), ("bf16", reading(0.045, 0.03, 0.06))], "CTR"))
    lines = [element for element in root.iter(SVG + "line") if element.get("class") == "interval"]
    dots = [float(element.get("cx") or "nan") for element in root.iter(SVG + "circle")]
    for line, dot in zip(lines, dots, strict=True):
        assert float(line.get("x1") or "nan") < dot < float(line.get("x2") or "nan")
    assert dots[0] > dots[1]
    assert {"fp8", "bf16"} <= set(texts(root))
    assert root.findtext(SVG + "desc") == "fp8 5.00 %; bf16 4.50 %"


@pytest.mark.parametrize("readings", [[], [("fp8", reading(None))]])
def test_without_a_value_there_is_no_chart(readings: list[Any]) -> None:
    assert intervals(readings, "CTR") == ""


share = st.floats(0, 1)


@given(
    st.lists(
        st.tuples(share, st.one_of(st.none(), st.floats(-1, 1)), st.one_of(st.none(), share)), min_size=1, max_size=4
    )
)
@example([(0.0, 1.0, None)])
def test_whatever_the_limits_intervals_are_well_formed(rows: list[Any]) -> None:
    svg = intervals([(f"arm{i}", reading(*row)) for i, row in enumerate(rows)], "CTR")
    assert not re.search(r"\b(nan|inf)\b", svg)
    for dot in parsed(svg).iter(SVG + "circle"):
        assert 140 <= float(dot.get("cx") or "nan") <= WIDTH - RIGHT


def test_names_are_text_and_never_markup() -> None:
    evil = '<script>alert("1")</script>&'
    for svg in (confidence_sequence([point(1), point(2)], evil), intervals([(evil, reading(0.5, 0.4, 0.6))], evil)):
        assert "<script" not in svg
        assert parsed(svg).findtext(SVG + "title") == evil
