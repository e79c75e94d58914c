"""What clients may report: comparisons of slates are the gateway's own, under any name."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from serving.problems import Problem
from serving.request_id import RequestSigner
from serving.routes.events import Batch, report_events
from serving.telemetry import Telemetry
from tests.serving.test_splitter import FakeInbox

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def services() -> Any:
    return SimpleNamespace(
        clock=lambda: NOW, signer=RequestSigner(b"s" * 32), catalogue={"i"}, inbox=FakeInbox(), telemetry=Telemetry()
    )


def event(behind: Any, **changes: Any) -> dict[str, Any]:
    request = behind.signer.issue("u", NOW)
    return {"event_id": "e", "kind": "click", "request_id": request, "user_id": "u", "item_id": "i"} | changes


async def test_a_click_is_accepted() -> None:
    behind = services()
    assert (await report_events(Batch(events=[event(behind)]), behind)).accepted == 1
    assert len(behind.inbox.records) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "differs"}, "kind"),
        ({"kind": "differs", "item_id": ""}, "kind"),
        ({"event_id": "differs:r"}, "event_id"),
    ],
)
async def test_no_client_writes_a_comparison(changes: dict[str, Any], field: str) -> None:
    behind = services()
    with pytest.raises(Problem) as refused:
        await report_events(Batch(events=[event(behind, **changes)]), behind)
    assert refused.value.status == 422
    assert refused.value.errors[0][0] == f"events[0].{field}"
    assert not behind.inbox.records
