from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.beam import beam_search
from model.config import OneRecConfig
from model.errors import ModelError
from model.gbpo import Aligner, AlignOptions, Feedback, gbpo_loss, item_log_probs, log_one_minus_exp
from model.onerec import OneRecV2
from model.reward import WatchHistory, advantages, engagement
from model.semantic_ids import Tokenizer
from model.trie import ItemTrie

pytestmark = pytest.mark.usefixtures("one_thread")

probability = st.floats(1e-6, 1 - 1e-6)
sample = st.tuples(probability, st.one_of(st.none(), probability), st.sampled_from([-1.0, 0.0, 1.0]))


def _old(pi: float, old: float | None, advantage: float) -> float:
    """pi'_old by the stated cases; without a logged probability pi_old = sg(pi)."""
    old = pi if old is None else old
    return max(old, pi) if advantage >= 0 else max(old, 1 - pi)


def _tensors(samples: list[tuple[float, float | None, float]]) -> tuple[Tensor, Tensor, Tensor]:
    pi, old, advantage = zip(*samples, strict=True)
    return (
        torch.tensor(pi, dtype=torch.float64).log().requires_grad_(),
        torch.tensor([math.nan if o is None else o for o in old], dtype=torch.float64).log(),
        torch.tensor(advantage, dtype=torch.float64),
    )


@given(st.lists(sample, min_size=1, max_size=12))
def test_gbpo_equals_the_stated_objective_by_loops(samples: list[tuple[float, float | None, float]]) -> None:
    total = 0.0
    for pi, old, advantage in samples:
        total += pi / _old(pi, old, advantage) * advantage
    assert gbpo_loss(*_tensors(samples)).item() == pytest.approx(-total / len(samples), rel=1e-9, abs=1e-12)


@given(st.lists(sample, min_size=1, max_size=8))
def test_gbpo_gradient_equals_finite_differences_with_the_denominator_held_fixed(
    samples: list[tuple[float, float | None, float]],
) -> None:
    """sg(pi) is a constant: moving pi must not move the denominator."""
    log_prob, old, advantage = _tensors(samples)
    (gradient,) = torch.autograd.grad(gbpo_loss(log_prob, old, advantage), log_prob)
    step = 1e-6
    for i, (pi, logged, gain) in enumerate(samples):
        fixed = _old(pi, logged, gain)

        def term(log_pi: float, fixed: float = fixed, gain: float = gain) -> float:
            return -math.exp(log_pi) / fixed * gain / len(samples)

        centre = math.log(pi)
        numeric = (term(centre + step) - term(centre - step)) / (2 * step)
        assert gradient[i].item() == pytest.approx(numeric, rel=1e-6, abs=1e-9)


def test_gbpo_gradient_through_a_model_equals_finite_differences(toy_config: OneRecConfig) -> None:
    """Every tenth weight of a whole model in float64."""
    torch.manual_seed(0)
    config = dataclasses.replace(toy_config, n_layers=1, kv_sets=1)
    model = OneRecV2(config).double().eval()
    history = torch.randint(0, 5, (3, 2, 3))
    shown, valid = torch.randint(0, 5, (3, 3)), torch.ones(3, 2, dtype=torch.bool)
    advantage = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)

    def log_prob() -> Tensor:
        logits = model(model.context(history, valid), shown)
        return torch.stack([torch.log_softmax(x, -1).gather(1, shown[:, [i]])[:, 0] for i, x in enumerate(logits)]).sum(
            0
        )

    start = log_prob().detach()
    old = start + torch.tensor([0.4, -0.3, math.nan], dtype=torch.float64)
    fixed = [
        _old(p, None if math.isnan(o) else o, a)
        for p, o, a in zip(start.exp().tolist(), old.exp().tolist(), advantage.tolist(), strict=True)
    ]
    gradients = torch.autograd.grad(gbpo_loss(log_prob(), old, advantage), list(model.parameters()))

    @torch.no_grad()
    def objective() -> float:
        return -float((log_prob().exp() / torch.tensor(fixed, dtype=torch.float64) * advantage).mean())

    checked = 0
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        flat = parameter.data.view(-1)
        for place in range(0, flat.shape[0], max(10, flat.shape[0] // 4)):
            value = flat[place].item()
            flat[place] = value + 1e-5
            above = objective()
            flat[place] = value - 1e-5
            below = objective()
            flat[place] = value
            assert gradient.view(-1)[place].item() == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-8)
            checked += 1
    assert checked > 50


@given(sample)
def test_gbpo_gradient_is_bounded_by_that_of_binary_cross_entropy(one: tuple[float, float | None, float]) -> None:
    pi, _, advantage = one
    log_prob, old, gain = _tensors([one])
    (gradient,) = torch.autograd.grad(gbpo_loss(log_prob, old, gain), log_prob)
    target = torch.tensor([1.0 if advantage > 0 else 0.0], dtype=torch.float64)
    policy = torch.tensor([pi], dtype=torch.float64, requires_grad=True)
    (entropy,) = torch.autograd.grad(torch.nn.functional.binary_cross_entropy(policy, target), policy)
    bound = abs(entropy.item()) * pi * abs(advantage)  # d/d log pi = pi · d/d pi
    assert abs(gradient.item()) <= bound * (1 + 1e-9) + 1e-15


def test_gbpo_negative_gradient_vanishes_where_a_plain_ratio_explodes() -> None:
    for pi in (1e-2, 1e-4, 1e-8):
        log_prob, old, advantage = _tensors([(pi, None, -1.0)])
        (gradient,) = torch.autograd.grad(gbpo_loss(log_prob, old, advantage), log_prob)
        assert gradient.item() / pi == pytest.approx(1 / (1 - pi))  # with respect to pi: bounded
        plain = torch.autograd.grad((log_prob - log_prob.detach()).exp().sum(), log_prob)[0]
        assert plain.item() / pi == pytest.approx(1 / pi)  # the planted opposite: unbounded


def test_gbpo_without_advantage_has_neither_value_nor_gradient_but_counts_in_the_mean() -> None:
    log_prob, old, advantage = _tensors([(0.3, 0.2, 0.0), (0.3, 0.6, 1.0)])
    loss = gbpo_loss(log_prob, old, advantage)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert loss.item() == pytest.approx(-0.5 * 0.5)
    assert gradient[0] == 0.0
    assert gradient[1] == pytest.approx(-0.25)


def test_gbpo_stays_finite_at_probabilities_that_float32_cannot_hold() -> None:
    log_prob = torch.tensor([-300.0, -300.0, -1e-9, -300.0], requires_grad=True)
    old = torch.tensor([-290.0, math.nan, -0.5, math.nan])
    loss = gbpo_loss(log_prob, old, torch.tensor([1.0, 1.0, -1.0, -1.0]))
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert torch.isfinite(gradient).all()
    assert gradient.tolist() == pytest.approx([-math.exp(-10) / 4, -0.25, math.exp(0.5) / 4, 0.0])


@given(st.floats(-50.0, -1e-12))
def test_log_one_minus_exp_equals_double_precision(x: float) -> None:
    got = log_one_minus_exp(torch.tensor([x], dtype=torch.float64)).item()
    exact = math.log(-math.expm1(x)) if x > -0.7 else math.log1p(-math.exp(x))
    assert got == pytest.approx(exact, rel=1e-12)


def test_gbpo_of_ill_fitting_shapes_is_refused() -> None:
    with pytest.raises(ModelError, match="advantage"):
        gbpo_loss(torch.zeros(3), torch.zeros(3), torch.zeros(2))


@pytest.mark.parametrize(
    "change", [{"learning_rate": 0.0}, {"clip_norm": -1.0}, {"supervision": -0.1}, {"epochs": 0}, {"batch_size": 0}]
)
def test_align_options_impossible_values_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ModelError, match=next(iter(change))):
        AlignOptions(**change)


@torch.no_grad()
def test_item_log_probs_are_the_beams_scores(toy_model: OneRecV2, toy_tokenizer: Tokenizer) -> None:
    history, valid = torch.randint(0, 5, (4, 2, 3)), torch.ones(4, 2, dtype=torch.bool)
    context = toy_model.context(history, valid)
    beams = beam_search(toy_model, context, ItemTrie.build(toy_tokenizer.codes), 20)
    for column in range(20):
        got = item_log_probs(toy_model, context, toy_tokenizer.codes[beams.items[:, column]])
        torch.testing.assert_close(got, beams.scores[:, column], atol=1e-5, rtol=1e-4)


class Audience:
    """Simulated users who came from one half of the catalogue and like that half.

    They watch most of what they like and little of the rest, and now and then say that they dislike it. Durations
    differ a hundredfold between items, so that playing time alone says little.
    """

    def __init__(self, codes: Tensor, users: int, seed: int) -> None:
        self.codes, self.rng = codes, np.random.default_rng(seed)
        self.duration_s = self.rng.choice([5.0, 60.0, 500.0], codes.shape[0])
        self.half = np.arange(users) % 2
        picked = np.stack([self.rng.choice(10, 4, replace=False) + 10 * half for half in self.half])
        self.history, self.valid = codes[torch.from_numpy(picked)], torch.ones(users, 4, dtype=torch.bool)
        self.past = [self.watch(np.full(60, user), self.rng.integers(0, 20, 60)) for user in range(users)]

    def likes(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        return self.half[user] == item // 10

    def watch(self, user: np.ndarray, item: np.ndarray) -> WatchHistory:
        share = np.where(
            self.likes(user, item), self.rng.uniform(0.6, 1.0, item.shape), self.rng.uniform(0, 0.4, item.shape)
        )
        return WatchHistory(self.duration_s[item], share * self.duration_s[item])

    def feedback(self, user: np.ndarray, item: np.ndarray, old_log_prob: Tensor) -> Feedback:
        seen = self.watch(user, item)
        scores = np.array(
            [engagement(self.past[u], seen.duration_s[[i]], seen.played_s[[i]])[0] for i, u in enumerate(user)]
        )
        disliked = ~self.likes(user, item) & (self.rng.random(item.shape) < 0.3)
        index = torch.from_numpy(user)
        return Feedback(
            self.history[index],
            self.valid[index],
            self.codes[torch.from_numpy(item)],
            old_log_prob,
            advantages(scores, disliked),
        )


@pytest.mark.parametrize("flip", [False, True])
def test_simulated_loop_raises_its_reward_while_every_answer_stays_legal(
    flip: bool, toy_model: OneRecV2, toy_tokenizer: Tokenizer
) -> None:
    """Recommend, watch, learn, again; with the advantages' sign flipped (the planted error) the reward falls."""
    codes, trie = toy_tokenizer.codes, ItemTrie.build(toy_tokenizer.codes)
    audience, users, shown = Audience(codes, 24, seed=1), 24, 5
    aligner = Aligner(toy_model, AlignOptions(learning_rate=2e-3))
    catalogue = {tuple(row) for row in codes.tolist()}
    who = np.repeat(np.arange(users), shown)

    def answer() -> tuple[np.ndarray, Tensor]:
        with torch.no_grad():
            beams = beam_search(toy_model, toy_model.context(audience.history, audience.valid), trie, shown)
        assert all(tuple(codes[item].tolist()) in catalogue for item in beams.items.flatten().tolist())
        assert int(beams.items.min()) >= 0
        return beams.items.numpy().copy(), beams.scores

    def liked() -> float:
        return float(audience.likes(who, answer()[0].flatten()).mean())

    def legal_mass() -> float:
        """Probability of all triples that are items, without the trie's help."""
        with torch.no_grad():
            context = toy_model.context(audience.history, audience.valid)
            each = [item_log_probs(toy_model, context, row.expand(users, -1)).exp() for row in codes]
        return float(torch.stack(each).sum(0).mean())

    before, mass = liked(), legal_mass()
    for _ in range(60):
        items, scores = answer()
        # the last place is filled by something else than the model, whose probability nobody knows
        items[:, -1], scores[:, -1] = audience.rng.integers(0, 20, users), math.nan
        feedback = audience.feedback(who, items.flatten(), scores.flatten())
        if flip:
            feedback = dataclasses.replace(feedback, advantage=-feedback.advantage)
        aligner.step(feedback)
    if flip:
        assert liked() < before
    else:
        assert liked() > before + 0.25
        assert legal_mass() > 2 * mass


def test_supervision_is_the_next_item_loss_on_the_newest_item_of_each_history(
    toy_model: OneRecV2, toy_tokenizer: Tokenizer
) -> None:
    codes = toy_tokenizer.codes
    history = codes[torch.tensor([[3, 2, 1], [6, 5, 4], [0, 0, 0]])]
    valid = torch.tensor([[True] * 3, [True, False, False], [False] * 3])
    feedback = Feedback(history, valid, codes[:3], torch.full((3,), math.nan), torch.zeros(3))

    def pretraining() -> float:
        with torch.no_grad():
            first = toy_model.loss(
                toy_model.context(codes[[2, 1]][None], torch.ones(1, 2, dtype=torch.bool)), codes[[3]]
            )
            second = toy_model.loss(
                toy_model.context(codes[[0]][None], torch.zeros(1, 1, dtype=torch.bool)), codes[[6]]
            )
        return (first.item() + second.item()) / 2

    before = pretraining()
    aligner = Aligner(toy_model, AlignOptions(learning_rate=2e-3, supervision=0.5))
    assert aligner.step(feedback).loss == pytest.approx(0.5 * before, rel=1e-4)
    for _ in range(10):
        aligner.step(feedback)
    assert pretraining() < before


def _of_pathways(codes: Tensor) -> Feedback:
    """One user who met items 3, 2 and 1, newest first, likes 3 and 5, and has two features."""
    places = torch.tensor([0, 1, 2, 6, 7])
    return Feedback(
        codes[torch.tensor([[3, 2, 1, 3, 5]])], torch.ones(1, 5, dtype=torch.bool), codes[:1], torch.tensor([-1.0]),
        torch.ones(1), places, torch.tensor([[1, 4]]),
    )  # fmt: skip


def test_a_model_with_pathways_learns_in_the_context_that_it_answers_in(
    make_model: Callable[..., OneRecV2], pathway_config: OneRecConfig, toy_tokenizer: Tokenizer
) -> None:
    model, codes = make_model(pathway_config), toy_tokenizer.codes
    told = _of_pathways(codes)
    with torch.no_grad():
        expected = item_log_probs(
            model, model.context(told.history, told.valid, told.places, told.features), told.shown
        )
        plain = item_log_probs(model, model.context(told.history[:, :3], told.valid[:, :3]), told.shown)
    assert abs(float(expected - plain)) > 1e-3
    step = Aligner(model, AlignOptions(learning_rate=1e-9)).step(told)
    assert step.liked == pytest.approx(float(expected) + 1.0, rel=1e-4)


def test_supervision_tells_nothing_of_the_target_among_what_is_liked(
    make_model: Callable[..., OneRecV2], pathway_config: OneRecConfig, toy_tokenizer: Tokenizer
) -> None:
    model, codes = make_model(pathway_config), toy_tokenizer.codes
    told = dataclasses.replace(_of_pathways(codes), advantage=torch.zeros(1))
    with torch.no_grad():
        rest = codes[torch.tensor([[2, 1, 5]])]
        context = model.context(rest, torch.ones(1, 3, dtype=torch.bool), torch.tensor([0, 1, 7]), told.features)
        expected = model.loss(context, codes[[3]])
    step = Aligner(model, AlignOptions(supervision=1.0, learning_rate=1e-9)).step(told)
    assert step.loss == pytest.approx(float(expected), rel=1e-4)


def test_supervision_of_new_users_only_teaches_nothing(toy_model: OneRecV2, toy_tokenizer: Tokenizer) -> None:
    codes = toy_tokenizer.codes
    feedback = Feedback(
        codes[[0]][None], torch.zeros(1, 1, dtype=torch.bool), codes[:1], torch.tensor([-1.0]), torch.zeros(1)
    )
    assert Aligner(toy_model, AlignOptions(supervision=1.0)).step(feedback).loss == 0.0
