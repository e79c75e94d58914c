from __future__ import annotations

import pytest

from model.data import Row, from_rows
from model.errors import DataError
from model.split import Split, leave_one_out


def _rows(text: str) -> list[Row]:
    """'a:xyz' is user a meeting x, y, z in this order."""
    return [
        Row(user, item, float(time), 0.0)
        for user, items in (part.split(":") for part in text.split())
        for time, item in enumerate(items)
    ]


def test_split_last_item_is_test_and_the_one_before_validation() -> None:
    data = from_rows(_rows("a:wxyz b:xw"))
    split = leave_one_out(data)
    a, b = data.users.index("a"), data.users.index("b")
    assert [data.items[i] for i in split.train[a]] == ["w", "x"]
    assert data.items[split.validation[a]] == "y"
    assert data.items[split.test[a]] == "z"
    assert [data.items[i] for i in split.train[b]] == ["x", "w"]
    assert split.test[b] == -1
    assert split.evaluated_users().tolist() == [a]
    assert [data.items[i] for i in split.history(a, with_validation=True)] == ["w", "x", "y"]


def test_split_counts_a_repeated_item_once_at_its_first_time() -> None:
    split = leave_one_out(from_rows(_rows("a:wxwyzw")))
    assert [split.interactions.items[i] for i in split.train[0]] == ["w", "x"]
    assert split.interactions.items[split.test[0]] == "z"


def test_split_without_a_user_of_three_items_is_refused() -> None:
    with pytest.raises(DataError, match="three distinct items"):
        leave_one_out(from_rows(_rows("a:xy b:xxxx")))


def test_split_signals_are_the_history_with_what_is_liked_of_it_and_the_profile() -> None:
    rated = zip("vwwxyz", (4.0, 5.0, 1.0, 3.0, 4.0, 5.0), strict=True)
    rows = [Row("a", item, float(time), value) for time, (item, value) in enumerate(rated)]
    rows.append(Row("b", "v", 9.0, 5.0))
    split = leave_one_out(from_rows(rows, profiles={"a": {"gender": "F"}}))
    v, w, x, y = (split.interactions.items.index(name) for name in "vwxy")
    assert [values.tolist() for values in split.values] == [[4.0, 5.0, 3.0, 4.0], [5.0]]
    before, known = (split.signals(0, 4.0, with_validation=validation) for validation in (False, True))
    assert (before.history, before.liked) == ([v, w, x], [v, w])
    assert (known.history, known.liked) == ([v, w, x, y], [v, w, y])
    assert before.profile == {"gender": "F"}
    assert split.signals(1, 4.0, with_validation=True).profile == {}
    assert split.signals(0, 4.5, with_validation=True).liked == [w]


def test_split_without_values_likes_nothing() -> None:
    split = leave_one_out(from_rows(_rows("a:wxyz")))
    assert split.signals(0, 4.0, with_validation=True).liked == []
    unknown = Split(split.interactions, split.train, split.validation, split.test)
    assert unknown.is_liked(0, -1.0, with_validation=False).tolist() == [False, False]
