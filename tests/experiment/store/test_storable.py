from __future__ import annotations

import math

from experiment.events import Served
from experiment.store.storable import storable
from tests.experiment.test_events import served


def test_what_every_database_takes_is_the_same_record() -> None:
    logged = {"history": ("50",), "slate": (("100", -4.25), ("7", None))}
    record = served(**logged, liked=("50",), profile=(("age", "25-34"),))
    assert storable(record) is record


def test_histories_and_slates_lose_what_no_database_takes() -> None:
    record = served(history=("a\0b", "☃"), slate=(("\ud83d", -1.0), ("c", math.nan), ("d", math.inf), ("e", None)))
    found = storable(record)
    assert isinstance(found, Served)
    assert found.history == ("a\N{REPLACEMENT CHARACTER}b", "☃")
    assert found.slate == (("?", -1.0), ("c", None), ("d", None), ("e", None))


def test_what_is_liked_and_a_profile_lose_it_too() -> None:
    found = storable(served(liked=("a\0b", "c"), profile=(("age", "\0"), ("\ud83d", "x"))))
    assert isinstance(found, Served)
    assert found.liked == ("a\N{REPLACEMENT CHARACTER}b", "c")
    assert found.profile == (("age", "\N{REPLACEMENT CHARACTER}"), ("?", "x"))
