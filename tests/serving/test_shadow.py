"""The other arm's slate behind the answer's back: the same trigger from either side, and never a cost to the answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from experiment.events import Interaction, Kind
from serving.client import Item
from serving.errors import NoAnswerError, VariantError
from serving.question import Question
from serving.settings import Settings
from tests.serving.test_splitter import CONTROLLED, ENTRY, OUTSIDE, SLATE, TABLE, TREATED, Variants, World

OTHER = [Item("b", -0.5), Item("a", -1.0)]
"""The same items in another order: another slate."""
SHADOWED = replace(TABLE, entries=(replace(ENTRY, shadow=True),))


class Slates(Variants):
    """Answers per variant; a variant in `held` answers once `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.slates: dict[str, list[Item]] = {}
        self.held: set[str] = set()
        self.release = asyncio.Event()

    async def recommend(self, variant: str, question: Question, timeout_s: float) -> list[Item]:
        items = await super().recommend(variant, question, timeout_s)
        if variant in self.held:
            try:
                await asyncio.wait_for(self.release.wait(), timeout_s)
            except TimeoutError as error:
                raise VariantError(variant, "timeout") from error
        return self.slates.get(variant, items)[: question.k]


@pytest.fixture
def variants() -> Slates:
    return Slates()


@pytest.fixture
def world(variants: Slates) -> World:
    return World(table=SHADOWED, variants=variants)


async def comparisons(world: World) -> list[Interaction]:
    await world.splitter.shadow.drain()
    return [record for record in world.inbox.records if isinstance(record, Interaction)]


@pytest.mark.parametrize(
    ("fp8", "value"), [(SLATE, 0.0), (OTHER, 1.0), ([Item("a", -9.0), Item("b", -9.5)], 0.0)], ids=str
)
@pytest.mark.parametrize("user", [TREATED[0], CONTROLLED[0]], ids=["treatment", "control"])
async def test_the_trigger_is_the_same_from_either_arm(
    world: World, variants: Slates, user: str, fp8: list[Item], value: float
) -> None:
    variants.slates["fp8"] = fp8
    answer = await world.ask(user)
    (found,) = await comparisons(world)
    assert sorted(variants.asked) == ["bf16", "fp8"]
    assert (found.kind, found.request_id, found.user_id, found.value) == (Kind.DIFFERS, answer.request_id, user, value)
    assert found.event_id == f"differs:{answer.request_id}"


async def test_only_the_first_request_of_a_user_is_compared(world: World) -> None:
    first = await world.ask(TREATED[0])
    for _ in range(3):
        await world.ask(TREATED[0])
    assert [one.request_id for one in await comparisons(world)] == [first.request_id]


async def test_a_first_sight_that_redis_missed_is_not_taken_for_one_later(world: World) -> None:
    world.store.down = True
    await world.ask(TREATED[0])
    world.store.down = False
    await world.ask(TREATED[0])
    assert not await comparisons(world)


@pytest.mark.parametrize("user", [OUTSIDE[0], "tester"], ids=["outside", "forced"])
async def test_who_takes_no_part_is_not_compared(world: World, user: str) -> None:
    await world.ask(user)
    assert not await comparisons(world)
    assert len(world.variants.asked) == 1


async def test_without_shadow_the_other_arm_is_not_asked(world: World) -> None:
    world.table = TABLE
    await world.ask(TREATED[0])
    assert not await comparisons(world)
    assert world.variants.asked == ["fp8"]


@pytest.mark.parametrize(("user", "other"), [(TREATED[0], "bf16"), (CONTROLLED[0], "fp8")])
async def test_the_answer_does_not_wait_for_the_other_arm(
    world: World, variants: Slates, user: str, other: str
) -> None:
    variants.held.add(other)
    answer = await world.ask(user)
    assert answer.items == SLATE
    assert not any(isinstance(record, Interaction) for record in world.inbox.records)
    variants.release.set()
    assert len(await comparisons(world)) == 1


@pytest.mark.parametrize("kind", ["timeout", "overloaded", "unreachable", "failed", "refused"])
async def test_a_dead_other_arm_costs_the_comparison_alone(world: World, variants: Slates, kind: str) -> None:
    variants.failing["fp8"] = kind
    answers = [await world.ask(user) for user in CONTROLLED[:6]]
    assert [(answer.items, answer.fallback) for answer in answers] == [(SLATE, None)] * 6
    assert not await comparisons(world)
    assert world.splitter.shadow.skipped == 6
    variants.failing.clear()
    assert (await world.ask(TREATED[0])).fallback is None, "what failed in shadow has cut off nobody"


async def test_an_unforeseen_failure_is_contained(world: World, variants: Slates) -> None:
    async def broken(*_: object) -> list[Item]:
        raise RuntimeError("no such thing")

    world.splitter.shadow._client.recommend = broken  # type: ignore[method-assign] # one that breaks its contract
    world.splitter._client = Variants()
    assert (await world.ask(CONTROLLED[0])).items == SLATE
    assert not await comparisons(world)
    assert world.splitter.shadow.skipped == 1


async def test_a_slate_that_control_had_to_give_is_not_compared(world: World, variants: Slates) -> None:
    variants.failing["fp8"] = "failed"
    assert (await world.ask(TREATED[0])).fallback == "failed"
    variants.failing["bf16"] = "failed"
    with pytest.raises(NoAnswerError):
        await world.ask(TREATED[1])
    assert not await comparisons(world)


async def test_an_arm_that_is_cut_off_is_not_asked_in_shadow(world: World, variants: Slates) -> None:
    variants.failing["fp8"] = "timeout"
    for user in TREATED[:3]:
        await world.ask(user)
    asked = variants.asked.count("fp8")
    await world.ask(CONTROLLED[0])
    assert not await comparisons(world)
    assert variants.asked.count("fp8") == asked


async def test_no_more_than_the_limit_are_under_way(variants: Slates) -> None:
    world = World(table=SHADOWED, variants=variants, settings=Settings(shadow_limit=2))
    variants.held.add("fp8")
    for user in CONTROLLED[:5]:
        assert (await world.ask(user)).items == SLATE
    assert world.splitter.shadow.skipped == 3
    variants.release.set()
    assert len(await comparisons(world)) == 2


async def test_at_shutdown_nobody_waits_longer_than_a_variant_may_take(variants: Slates) -> None:
    world = World(table=SHADOWED, variants=variants, settings=Settings(variant_timeout_s=0.05))
    variants.held.add("fp8")
    await world.ask(CONTROLLED[0])
    assert not await comparisons(world)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("shadow-")]


async def test_a_full_spool_loses_the_comparison_and_nothing_else(world: World) -> None:
    world.inbox.full = True
    assert (await world.ask(TREATED[0])).items == SLATE
    assert not await comparisons(world)
    assert world.splitter.shadow.skipped == 1
