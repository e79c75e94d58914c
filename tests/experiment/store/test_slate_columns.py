from __future__ import annotations

from typing import Any

import pytest

from experiment.store.slate_columns import READ, to_columns
from tests.experiment.test_events import served


@pytest.mark.parametrize(
    "logged",
    [
        {"slate": (("a", -1.5),)},
        {"history": ("x", "☃"), "slate": (("a", -1.5), ('quote "', None))},
        {"slate": (("a", -1.5),), "liked": ("x", "☃"), "profile": (("age", "25-34"), ('quote "', ""))},
    ],
)
def test_columns_come_back(logged: dict[str, Any]) -> None:
    found = to_columns(served(**logged))
    nothing: dict[str, Any] = dict.fromkeys(READ, ())
    assert {name: read(found[name]) for name, read in READ.items()} == nothing | logged


def test_what_was_not_logged_is_null_and_a_new_users_history_is_not() -> None:
    assert to_columns(served()) == dict.fromkeys(READ)
    assert [read(None) for read in READ.values()] == [()] * 4
    new = to_columns(served(slate=(("a", -1.5),)))
    assert (new["history"], new["liked"], new["profile"]) == ("[]", None, None)


def test_columns_are_compact() -> None:
    logged = {"history": ("50", "é"), "slate": (("100", -4.25), ("7", None)), "liked": ("50",)}
    assert to_columns(served(**logged, profile=(("age", "25-34"),))) == {
        "history": '["50","é"]',
        "slate": '[["100",-4.25],["7",null]]',
        "liked": '["50"]',
        "profile": '[["age","25-34"]]',
    }
