"""The page tells of triggered users where slates are compared, and is silent where they are not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from experiment.evidence import weigh
from experiment.spec import parse_spec
from serving.routes.dashboard import _content, _page
from tests.experiment.factories import DOCUMENT
from tests.experiment.test_report import decided
from tests.experiment.test_triggered import planted


@pytest.mark.parametrize("shadow", [True, False])
def test_the_page_shows_the_trigger_where_slates_are_compared(shadow: bool) -> None:
    look = planted(parse_spec(DOCUMENT | {"shadow": shadow}), -0.3)
    row = replace(look.row, looks=1)
    decisions = [decided(row, 1, weigh(look))]
    experiments = SimpleNamespace(get=lambda _key: row, decisions=lambda _key, **_thinned: decisions)
    values = _content(row.key, SimpleNamespace(experiments=experiments))  # type: ignore[arg-type] # all that it reads
    text = bytes(_page("content.html", None, **values).body).decode()
    assert ("10 % of 40,000 users would have seen another slate" in text) is shadow
    assert ("Their sample ratio: ok" in text) is shadow
