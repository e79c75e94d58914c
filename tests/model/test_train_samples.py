from __future__ import annotations

import dataclasses

import pytest
import torch

from model.data import Row, from_rows
from model.split import Split, leave_one_out
from model.train_samples import Samples


@pytest.fixture
def paged_split() -> Split:
    """a meets x alone and then vwy at once; b meets vw at the time of a's page, then xyz one by one."""
    rows = [Row("a", "x", 1.0, 0.0), *(Row("a", item, 5.0, 0.0) for item in "vwy"), Row("a", "p", 6.0, 0.0)]
    rows += [Row("a", "q", 7.0, 0.0), Row("b", "v", 5.0, 0.0), Row("b", "w", 5.0, 0.0)]
    rows += [Row("b", item, 6.0 + time, 0.0) for time, item in enumerate("xyz")]
    return leave_one_out(from_rows(rows))


def _names(split: Split, items: torch.Tensor) -> str:
    return "".join(split.interactions.items[item] for item in items.tolist())


def test_samples_are_every_position_with_its_history_newest_first(toy_split: Split) -> None:
    samples = Samples.of(toy_split)
    assert len(samples) == sum(len(history) for history in toy_split.train)
    items, valid = samples.windows(torch.arange(len(samples)), 3)
    position = 0
    for history in toy_split.train:
        for place, target in enumerate(history.tolist()):
            expected = history[max(0, place - 3) : place][::-1].tolist()
            assert items[position][valid[position]].tolist() == expected
            assert int(samples.items[position]) == target
            position += 1


def test_samples_instant_is_shared_by_one_user_and_time_only(paged_split: Split) -> None:
    samples = Samples.of(paged_split)
    assert _names(paged_split, samples.items) == "xvwyvwx"
    assert samples.instant.tolist() == [1, 2, 2, 2, 3, 3, 4]


def test_samples_instant_is_that_of_the_first_meeting(paged_split: Split) -> None:
    seen = paged_split.interactions
    rows = [
        Row(seen.users[user], seen.items[item], time, 0.0)
        for user, item, time in zip(seen.user, seen.item, seen.timestamp, strict=True)
    ]
    later = [dataclasses.replace(row, timestamp=row.timestamp + 50.0) for row in rows]
    doubled = Samples.of(leave_one_out(from_rows(rows + later)))
    assert torch.equal(doubled.instant, Samples.of(paged_split).instant)


def test_samples_reordered_moves_items_within_their_instant_and_tries_every_order(paged_split: Split) -> None:
    samples, generator = Samples.of(paged_split), torch.Generator().manual_seed(0)
    found = [samples.reordered(generator) for _ in range(200)]
    orders = [_names(paged_split, one.items) for one in found]
    assert {(order[0], order[6]) for order in orders} == {("x", "x")}
    assert {order[1:4] for order in orders} == {"vwy", "vyw", "wvy", "wyv", "yvw", "ywv"}
    assert {order[4:6] for order in orders} == {"vw", "wv"}
    assert all(torch.equal(one.start, samples.start) for one in found)
    assert _names(paged_split, samples.items) == "xvwyvwx", "the samples themselves stay"


def test_samples_reordered_repeats_with_its_generator_and_leaves_distinct_times_alone(
    paged_split: Split, toy_split: Split
) -> None:
    samples = Samples.of(paged_split)
    first, again = (samples.reordered(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.items, again.items)
    plain = Samples.of(toy_split)
    assert torch.equal(plain.reordered(torch.Generator().manual_seed(3)).items, plain.items)
