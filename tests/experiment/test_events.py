"""Records as JSON: what goes into a spool comes out of it, also when an older version wrote it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from experiment.events import Interaction, Kind, Record, Served, from_dict, to_dict

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def served(**changes: Any) -> Served:
    fields: dict[str, Any] = {
        "experiment": "e", "run": 1, "arm": "fp8", "bucket": 0.1, "phase": 2, "served_variant": "fp8",
        "table_version": 1, "reason": "SPLIT", "fallback": None, "failed": False, "slow": False, "forced": False,
        "latency_ms": 5.0,
    }  # fmt: skip
    return Served("r", "u", received_at=NOW, **(fields | changes))


@pytest.mark.parametrize(
    "record",
    [
        served(),
        served(history=("50", "☃"), slate=(("100", -4.25), ("7", None))),
        served(slate=(("100", -4.25),)),
        served(history=("50",), slate=(("7", -1.0),), liked=("50", "☃"), profile=(("age", "25-34"), ("sex", "F"))),
        Interaction("e1", Kind.WATCH, "r", "u", "i", None, 30.0, NOW, NOW),
    ],
)
def test_a_record_comes_back_from_its_json(record: Record) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(record)))) == record


def test_a_record_of_before_slates_were_logged_has_none() -> None:
    old = to_dict(served())
    assert not {"history", "slate", "liked", "profile"} & old.keys(), "an empty one reads like an old one"
    found = from_dict(old)
    assert isinstance(found, Served)
    assert (found.history, found.slate, found.liked, found.profile) == ((), (), (), ())


@pytest.mark.parametrize(
    "change", [{"slate": [["a"]]}, {"slate": 7}, {"history": 7}, {"liked": 7}, {"profile": [["age"]]}, {"surprise": 1}]
)
def test_what_is_no_record_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_dict(to_dict(served()) | change)
