"""A question is the same after it has travelled."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from serving.question import Question

items = st.lists(st.text(min_size=1, max_size=5), max_size=4)
questions = st.builds(Question, items, st.integers(), items, st.dictionaries(st.text(), st.text(), max_size=3))


@given(questions)
def test_a_question_is_the_same_after_it_has_travelled(question: Question) -> None:
    assert Question.of(json.loads(json.dumps(question.body()))) == question


def test_what_is_empty_does_not_travel() -> None:
    assert Question(("a",), 3).body() == {"history": ["a"], "k": 3}
