"""One request from user to answer: the right arm, control behind it, and one durable record whatever happens."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment.errors import InvalidUserError, StoreUnavailableError
from experiment.events import Record, Served
from experiment.ports import Enrolment
from experiment.routing import ArmRange, RoutingEntry, RoutingTable, route
from experiment.store.memory import MemoryAssignments
from serving.client import Item
from serving.enrol import Enrolments
from serving.errors import NoAnswerError, SpoolFullError, VariantError
from serving.question import Question
from serving.request_id import RequestSigner
from serving.settings import Settings
from serving.splitter import STALE, Answer, Splitter

NOW = datetime(2026, 11, 23, tzinfo=UTC)
SLATE = [Item("a", -0.5), Item("b", -1.0)]
ENTRY = RoutingEntry(
    experiment="e", run=2, seed="s", layer="default", layer_start=0.0, layer_end=1.0, phase=1, latency_objective_ms=1e6,
    arms=(ArmRange("treatment", "fp8", 0.0, 0.4), ArmRange("control", "bf16", 0.5, 0.9)),
    overrides={"tester": "treatment"},
)  # fmt: skip
TABLE = RoutingTable(version=9, default_variant="plain", entries=(ENTRY,))


def users_of(arm: str | None, table: RoutingTable = TABLE) -> list[str]:
    return [user for user in (f"u{number}" for number in range(60)) if route(table, user).arm == arm]


TREATED, CONTROLLED, OUTSIDE = users_of("treatment"), users_of("control"), users_of(None)


class Variants:
    """Every variant answers the same slate, or fails with the kind that `failing` says."""

    def __init__(self) -> None:
        self.failing: dict[str, str] = {}
        self.calls: list[tuple[str, float]] = []

    async def recommend(self, variant: str, question: Question, timeout_s: float) -> list[Item]:
        self.calls.append((variant, timeout_s))
        await asyncio.sleep(0)
        if kind := self.failing.get(variant):
            raise VariantError(variant, kind)
        return SLATE[: question.k]

    @property
    def asked(self) -> list[str]:
        return [variant for variant, _ in self.calls]


class FakeInbox:
    """What became durable; refuses while it is full."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.full = False

    async def accept(self, records: Sequence[Record]) -> None:
        if self.full:
            raise SpoolFullError("full")
        self.records += records


class Assignments(MemoryAssignments):
    down = False

    async def assign_if_absent(self, experiment: str, run: int, user_id: str, arm: str, epoch: int) -> Enrolment:
        if self.down:
            raise StoreUnavailableError("away")
        return await super().assign_if_absent(experiment, run, user_id, arm, epoch)


@dataclass
class World:
    """A splitter with everything behind it in this process."""

    table: RoutingTable = TABLE
    variants: Variants = field(default_factory=Variants)
    inbox: FakeInbox = field(default_factory=FakeInbox)
    store: Assignments = field(default_factory=Assignments)
    observed: list[Served] = field(default_factory=list)
    settings: Settings = field(default_factory=lambda: Settings(variant_timeout_s=1.0, answer_timeout_s=2.5))

    def __post_init__(self) -> None:
        self.signer = RequestSigner(b"s" * 32)
        self.splitter = Splitter(
            lambda: self.table, Enrolments(self.store, 1000, retry_s=0.0), self.variants, self.inbox,  # type: ignore[arg-type] # a fake has no disk
            self.signer, self.settings, lambda: NOW, self.observed.append,
        )  # fmt: skip

    async def ask(self, user: str) -> Answer:
        return await self.splitter.recommend(user, Question(["x"], 2))

    @property
    def record(self) -> Served:
        found = self.inbox.records[-1]
        assert isinstance(found, Served)
        return found


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("user", "arm", "variant"),
    [(TREATED[0], "treatment", "fp8"), (CONTROLLED[0], "control", "bf16"), (OUTSIDE[0], None, "plain")],
)
async def test_a_user_is_answered_by_the_arm_of_the_table(
    world: World, user: str, arm: str | None, variant: str
) -> None:
    answer = await world.ask(user)
    assert (answer.route.arm, answer.served_arm, answer.served_variant, answer.fallback) == (arm, arm, variant, None)
    assert answer.items == SLATE
    assert world.variants.asked == [variant]


async def test_the_record_says_what_the_answer_says(world: World) -> None:
    answer = await world.ask(TREATED[0])
    assert world.record == Served(
        request_id=answer.request_id, user_id=TREATED[0], experiment="e", run=2, arm="treatment",
        bucket=answer.route.bucket, phase=1, served_variant="fp8", table_version=9, reason="SPLIT", fallback=None,
        failed=False, slow=False, forced=False, latency_ms=answer.latency_ms, received_at=NOW,
        history=("x",), slate=(("a", -0.5), ("b", -1.0)),
    )  # fmt: skip
    assert world.observed == world.inbox.records
    assert world.signer.verify(answer.request_id, TREATED[0]) == NOW


async def test_a_long_history_is_logged_by_its_newest_items() -> None:
    world = World(settings=Settings(log_history=2))
    await world.splitter.recommend(TREATED[0], Question(["x", "y", "z"], 2))
    assert world.record.history == ("y", "z")


async def test_what_a_user_likes_and_their_profile_are_logged() -> None:
    world = World(settings=Settings(log_history=2))
    await world.splitter.recommend(TREATED[0], Question(["x"], 2, ["a", "b", "c"], {"age": "25-34"}))
    assert (world.record.liked, world.record.profile) == (("b", "c"), (("age", "25-34"),))


async def test_nothing_of_histories_and_slates_is_logged_where_that_is_switched_off() -> None:
    world = World(settings=Settings(log_slates=False))
    answer = await world.splitter.recommend(TREATED[0], Question(["x"], 2, ["a"], {"age": "25-34"}))
    assert answer.items == SLATE
    assert (world.record.history, world.record.slate, world.record.failed) == ((), (), False)
    assert (world.record.liked, world.record.profile) == ((), ())


async def test_the_slate_of_a_fallback_is_logged_and_a_failure_has_none(world: World) -> None:
    world.variants.failing["fp8"] = "failed"
    await world.ask(TREATED[0])
    assert (world.record.served_variant, world.record.slate) == ("bf16", (("a", -0.5), ("b", -1.0)))
    world.variants.failing["bf16"] = "failed"
    with pytest.raises(NoAnswerError):
        await world.ask(TREATED[0])
    assert (world.record.failed, world.record.history, world.record.slate) == (True, (), ())


async def test_every_request_has_an_id_of_its_own(world: World) -> None:
    assert len({(await world.ask(TREATED[0])).request_id for _ in range(20)}) == 20


@pytest.mark.parametrize("kind", ["timeout", "overloaded", "unreachable", "failed", "refused"])
async def test_control_answers_for_a_treatment_that_cannot(world: World, kind: str) -> None:
    world.variants.failing["fp8"] = kind
    answer = await world.ask(TREATED[0])
    assert world.variants.asked == ["fp8", "bf16"]
    assert (answer.route.arm, answer.served_arm, answer.served_variant) == ("treatment", "control", "bf16")
    assert answer.items == SLATE
    assert (world.record.arm, world.record.served_variant) == ("treatment", "bf16")
    assert (world.record.fallback, world.record.failed) == (kind, False)


async def test_the_fallback_has_the_time_that_is_left(world: World) -> None:
    world.variants.failing["fp8"] = "timeout"
    await world.ask(TREATED[0])
    (_, first_s), (_, second_s) = world.variants.calls
    assert first_s == world.settings.variant_timeout_s
    assert 0.1 <= second_s <= world.settings.answer_timeout_s


@pytest.mark.parametrize(("user", "asked"), [(CONTROLLED[0], ["bf16"]), (OUTSIDE[0], ["plain"])])
async def test_nobody_stands_behind_control(world: World, user: str, asked: list[str]) -> None:
    world.variants.failing |= dict.fromkeys(["fp8", "bf16", "plain"], "failed")
    with pytest.raises(NoAnswerError):
        await world.ask(user)
    assert world.variants.asked == asked


async def test_a_request_without_an_answer_is_written_down_as_one_failure(world: World) -> None:
    world.variants.failing |= {"fp8": "timeout", "bf16": "failed"}
    with pytest.raises(NoAnswerError, match="bf16"):
        await world.ask(TREATED[0])
    assert (world.record.failed, world.record.arm) == (True, "treatment")
    assert world.record.fallback is None, "nobody fell back: error_share would count the request twice"
    assert len(world.inbox.records) == 1


async def test_what_befell_one_call_counts_once_however_many_asked_in_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, asked = VariantError("fp8", "unreachable"), world.variants.recommend

    async def recommend(variant: str, question: Question, timeout_s: float) -> list[Item]:
        if variant == "fp8":
            raise call
        return await asked(variant, question, timeout_s)

    monkeypatch.setattr(world.variants, "recommend", recommend)
    fallbacks = [(await world.ask(user)).fallback for user in TREATED[:6]]
    assert fallbacks == ["unreachable"] * 6


async def test_a_dead_treatment_is_no_longer_asked_and_the_answers_say_so(world: World) -> None:
    world.variants.failing["fp8"] = "timeout"
    fallbacks = [(await world.ask(user)).fallback for user in TREATED[:6]]
    assert fallbacks == ["timeout"] * 3 + ["breaker_open"] * 3
    assert Counter(world.variants.asked) == {"fp8": 3, "bf16": 6}
    assert (await world.ask(CONTROLLED[0])).fallback is None


async def test_failures_with_an_answer_between_them_cut_nobody_off(world: World) -> None:
    for _ in range(4):
        for failing in ({"fp8": "timeout"}, {"fp8": "timeout"}, {}):
            world.variants.failing = failing
            assert (await world.ask(TREATED[0])).fallback == failing.get("fp8")


async def test_a_question_that_a_variant_refuses_does_not_cut_it_off_from_others(world: World) -> None:
    world.variants.failing["fp8"] = "refused"
    assert [(await world.ask(user)).fallback for user in TREATED[:6]] == ["refused"] * 6
    world.variants.failing.clear()
    assert (await world.ask(TREATED[0])).fallback is None


async def test_the_arm_that_redis_keeps_outranks_the_table(world: World) -> None:
    user = TREATED[0]
    await world.store.assign_if_absent("e", 2, user, "control", 1)
    answer = await world.ask(user)
    assert (answer.route.arm, answer.served_variant, world.record.arm) == ("control", "bf16", "control")


async def test_a_kept_arm_that_the_experiment_no_longer_has_is_ignored(world: World) -> None:
    user = TREATED[0]
    await world.store.assign_if_absent("e", 2, user, "gone", 1)
    assert (await world.ask(user)).route.arm == "treatment"


async def test_another_run_does_not_bind_a_user(world: World) -> None:
    user = TREATED[0]
    await world.store.assign_if_absent("e", 1, user, "control", 1)
    assert (await world.ask(user)).route.arm == "treatment"


async def test_without_redis_the_hash_decides_and_the_record_says_so(world: World) -> None:
    world.store.down = True
    answer = await world.ask(TREATED[0])
    assert (answer.route.arm, answer.route.reason, world.record.reason) == ("treatment", STALE, STALE)
    world.store.down = False
    assert (await world.ask(TREATED[0])).route.reason == "SPLIT"


async def test_a_forced_arm_asks_no_redis_and_is_marked(world: World) -> None:
    world.store.down = True
    answer = await world.ask("tester")
    assert (answer.route.arm, answer.route.forced, answer.route.reason) == ("treatment", True, "TARGETING_MATCH")
    assert world.record.forced
    world.store.down = False
    assert (await world.store.assign_if_absent("e", 2, "tester", "control", 1)).first, "Redis knew nothing of it"


async def test_users_outside_every_experiment_leave_no_trace_in_redis(world: World) -> None:
    world.store.down = True
    assert (await world.ask(OUTSIDE[0])).route.reason == "DEFAULT"


async def test_a_full_spool_costs_the_record_and_not_the_answer(world: World) -> None:
    world.inbox.full = True
    assert (await world.ask(TREATED[0])).items == SLATE
    assert world.splitter.lost_exposures == 1
    assert not world.inbox.records


async def test_slow_is_what_the_experiment_calls_slow(world: World) -> None:
    await world.ask(TREATED[0])
    assert not world.record.slow
    world.table = replace(TABLE, entries=(replace(ENTRY, latency_objective_ms=1e-6),))
    await world.ask(TREATED[0])
    assert world.record.slow
    await world.ask(OUTSIDE[0])
    assert not world.record.slow, "no experiment, no objective"


async def test_a_new_table_holds_from_the_next_request_on(world: World) -> None:
    await world.ask(TREATED[0])
    world.table = RoutingTable(version=10, default_variant="bf16")
    answer = await world.ask(TREATED[0])
    assert (answer.route.arm, answer.served_variant, answer.table_version) == (None, "bf16", 10)


@pytest.mark.parametrize("user", ["", "  ", "u" * 300])
async def test_an_impossible_user_is_refused_before_anything_happens(world: World, user: str) -> None:
    with pytest.raises(InvalidUserError):
        await world.ask(user)
    assert not world.variants.calls
    assert not world.inbox.records


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*TREATED[:4], *CONTROLLED[:4], *OUTSIDE[:2]]),
            st.dictionaries(st.sampled_from(["fp8", "bf16"]), st.sampled_from(["timeout", "failed"]), max_size=2),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_whatever_fails_nobody_changes_arm_and_every_request_is_recorded_once(
    asked: list[tuple[str, dict[str, str], bool]],
) -> None:
    async def live() -> None:
        world = World()
        answered = 0
        for user, failing, redis_down in asked:
            world.variants.failing, world.store.down = failing, redis_down
            try:
                answer = await world.ask(user)
            except NoAnswerError:
                assert world.record.failed
            else:
                answered += 1
                assert answer.request_id == world.record.request_id
                assert answer.served_variant in {answer.route.variant, answer.route.control_variant}
                assert (answer.fallback is None) == (answer.served_variant == answer.route.variant)
        records = world.inbox.records
        assert len(records) == len({record.request_id for record in records}) == len(asked)
        assert sum(not record.failed for record in records) == answered
        for record, (user, _, _) in zip(records, asked, strict=True):
            assert (record.user_id, record.arm) == (user, route(TABLE, user).arm)

    asyncio.run(live())
