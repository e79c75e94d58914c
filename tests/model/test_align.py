from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.align import AlignResult, align
from model.errors import ModelError
from model.gbpo import AlignOptions, AlignStep, gbpo_loss, item_log_probs
from model.lessons import LessonBook, Lessons
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer

OPTIONS = AlignOptions(epochs=4, batch_size=16, learning_rate=2e-3)


def _lessons(model: OneRecV2, codes: torch.Tensor, slates: int = 30) -> Lessons:
    """Everybody plays an item the longer the lower its number, and dislikes the last one."""
    rng, book = np.random.default_rng(0), LessonBook()
    for _ in range(slates):
        history = rng.integers(0, 20, 3).tolist()
        context = model.context(codes[history[::-1]][None], torch.ones(1, 3, dtype=torch.bool))
        book.open(history)
        for item in rng.choice(20, 4, replace=False).tolist():
            with torch.no_grad():
                old = item_log_probs(model, context, codes[[item]]).item()
            book.add(item, old, 1.0 - item / 20, item == 19)
    return book.lessons()


def _mass(model: OneRecV2, codes: torch.Tensor, items: range) -> float:
    """Probability that the policy gives these items."""
    context = model.context(codes[[3, 2, 1]][None], torch.ones(1, 3, dtype=torch.bool))
    with torch.no_grad():
        return sum(item_log_probs(model, context, codes[[item]]).exp().item() for item in items)


def _align(model: OneRecV2, tokenizer: Tokenizer, seed: int = 0) -> AlignResult:
    return align(model, tokenizer.codes, _lessons(model, tokenizer.codes), OPTIONS, seed)


def test_what_was_liked_becomes_likelier_and_what_was_disliked_less(
    toy_model: OneRecV2, toy_tokenizer: Tokenizer
) -> None:
    before = _mass(toy_model, toy_tokenizer.codes, range(5))
    found = _align(toy_model, toy_tokenizer)
    assert _mass(toy_model, toy_tokenizer.codes, range(5)) > before
    assert len(found.steps) == 4 * 8
    assert found.steps[0].liked == pytest.approx(0.0, abs=1e-5), "the first step starts from the policy of the log"
    assert found.steps[-1].liked > 0.1
    assert found.liked > 0
    assert found.disliked > 0
    assert not toy_model.training


def test_another_objective_may_be_compared(toy_model: OneRecV2, toy_tokenizer: Tokenizer) -> None:
    before, lessons = _mass(toy_model, toy_tokenizer.codes, range(5)), _lessons(toy_model, toy_tokenizer.codes)
    align(toy_model, toy_tokenizer.codes, lessons, OPTIONS, 0, objective=lambda p, old, a: gbpo_loss(p, old, -a))
    assert _mass(toy_model, toy_tokenizer.codes, range(5)) < before


def test_the_same_seed_gives_the_same_model_and_the_callers_randomness_is_left_alone(
    make_model: object, toy_tokenizer: Tokenizer, toy_config: object
) -> None:
    weights = []
    for seed in (1, 1, 2):
        model = make_model(replace(toy_config, dropout=0.1))  # type: ignore[operator,type-var]
        state = torch.random.get_rng_state()
        _align(model, toy_tokenizer, seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        weights.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_progress_is_told_step_by_step(toy_model: OneRecV2, toy_tokenizer: Tokenizer) -> None:
    told: list[tuple[int, int]] = []

    def tell(done: int, steps: int, step: AlignStep) -> None:
        assert math.isfinite(step.loss)
        told.append((done, steps))

    align(toy_model, toy_tokenizer.codes, _lessons(toy_model, toy_tokenizer.codes), OPTIONS, 0, tell)
    assert told == [(done, 32) for done in range(1, 33)]


def test_lessons_without_a_score_or_a_dislike_are_refused(toy_model: OneRecV2, toy_tokenizer: Tokenizer) -> None:
    book = LessonBook()
    book.open([1])
    book.add(2, -1.0, math.nan, False)
    with pytest.raises(ModelError, match="nothing to learn"):
        align(toy_model, toy_tokenizer.codes, book.lessons(), OPTIONS, 0)
    with pytest.raises(ModelError, match="nothing to learn"):
        align(toy_model, toy_tokenizer.codes, LessonBook().lessons(), OPTIONS, 0)


def test_a_loss_that_is_no_number_ends_it(toy_model: OneRecV2, toy_tokenizer: Tokenizer) -> None:
    lessons = _lessons(toy_model, toy_tokenizer.codes)
    with pytest.raises(ModelError, match="learning_rate"):
        align(toy_model, toy_tokenizer.codes, lessons, OPTIONS, 0, objective=lambda p, _old, _a: p.sum() * math.nan)
