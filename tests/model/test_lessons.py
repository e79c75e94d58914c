from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.errors import ModelError
from model.lessons import LessonBook, Lessons
from model.reward import advantages

CODES = torch.arange(60).view(20, 3)


def _lessons() -> Lessons:
    """Two slates of a user with a history, one of a user without."""
    book = LessonBook()
    book.open([4, 5, 6])
    book.add(7, -1.5, 1.0, False)
    book.add(8, None, 0.0, True)
    book.open([4, 5, 6, 7])
    book.add(9, -2.5, math.nan, False)
    book.open([])
    book.add(10, -3.5, 0.5, False)
    return book.lessons()


def test_a_batch_has_each_items_history_newest_first_and_cut_to_the_context() -> None:
    found = _lessons().batch(torch.tensor([0, 2, 3]), CODES, context_len=3)
    assert found.valid.tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert torch.equal(found.history[0], CODES[[6, 5, 4]])
    assert torch.equal(found.history[1], CODES[[7, 6, 5]])
    assert torch.equal(found.shown, CODES[[7, 9, 10]])


def test_a_batch_is_as_wide_as_its_longest_history() -> None:
    found = _lessons().batch(torch.tensor([0, 3]), CODES, context_len=20)
    assert found.history.shape == (2, 3, 3)
    empty = _lessons().batch(torch.tensor([3]), CODES, context_len=20)
    assert empty.valid.tolist() == [[False]]


def test_a_batch_of_nothing_but_new_users_works() -> None:
    book = LessonBook()
    book.open([])
    book.add(1, -1.0, 1.0, False)
    assert book.lessons().batch(torch.tensor([0]), CODES, 5).valid.tolist() == [[False]]


def test_a_batch_is_judged_against_itself_and_an_unknown_probability_stays_unknown() -> None:
    lessons = _lessons()
    found = lessons.batch(torch.arange(4), CODES, 5)
    expected = advantages(np.array([1.0, 0.0, math.nan, 0.5]), np.array([False, True, False, False]))
    assert torch.equal(found.advantage, expected)
    assert found.advantage[1] == -1.0
    assert found.old_log_prob.tolist()[0] == -1.5
    assert math.isnan(found.old_log_prob[1])


def test_what_is_liked_stands_behind_the_history_at_places_of_its_own() -> None:
    book = LessonBook()
    book.open([4, 5], liked=[1, 2, 3], features=[6, 0])
    book.add(7, -1.0, 1.0, False)
    book.open([], liked=[], features=[5])
    book.add(8, -1.0, 0.0, False)
    found = book.lessons().batch(torch.tensor([0, 1]), CODES, context_len=3, positive_len=2)
    assert found.valid.tolist() == [[True] * 4, [False] * 4]
    assert torch.equal(found.history[0], CODES[[5, 4, 3, 2]])
    assert found.places is not None
    assert found.places.tolist() == [0, 1, 3, 4]
    assert found.features is not None
    assert [sorted(row) for row in found.features.tolist()] == [[0, 6], [-1, 5]]
    without = book.lessons().batch(torch.tensor([0, 1]), CODES, context_len=3)
    assert (without.places, without.history.shape) == (None, (2, 2, 3))
    assert _lessons().batch(torch.tensor([0]), CODES, 3).features is None


def test_lessons_count_items_and_slates() -> None:
    assert (len(_lessons()), _lessons().slates) == (4, 3)
    assert (len(LessonBook().lessons()), LessonBook().lessons().slates) == (0, 0)


def test_an_item_before_its_slate_is_refused() -> None:
    with pytest.raises(ModelError, match="slate"):
        LessonBook().add(1, None, 0.5, False)
