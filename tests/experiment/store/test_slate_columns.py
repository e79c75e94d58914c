from __future__ import annotations

import pytest

from experiment.events import Slate
from experiment.store.slate_columns import history_of, slate_of, to_columns
from tests.experiment.test_events import served


@pytest.mark.parametrize(("history", "slate"), [((), (("a", -1.5),)), (("x", "☃"), (("a", -1.5), ('quote "', None)))])
def test_columns_come_back(history: tuple[str, ...], slate: Slate) -> None:
    found = to_columns(served(history=history, slate=slate))
    assert (history_of(found["history"]), slate_of(found["slate"])) == (history, slate)


def test_what_was_not_logged_is_null_and_a_new_users_history_is_not() -> None:
    assert to_columns(served()) == {"history": None, "slate": None}
    assert (history_of(None), slate_of(None)) == ((), ())
    assert to_columns(served(slate=(("a", -1.5),)))["history"] == "[]"


def test_columns_are_compact() -> None:
    found = to_columns(served(history=("50", "é"), slate=(("100", -4.25), ("7", None))))
    assert found == {"history": '["50","é"]', "slate": '[["100",-4.25],["7",null]]'}
