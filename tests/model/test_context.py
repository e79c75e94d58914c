from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.config import PRESETS, OneRecConfig
from model.context import ContextProcessor
from model.onerec import OneRecV2


def _rms(vector: Tensor, weight: Tensor, eps: float) -> Tensor:
    mean_square = sum(float(x) ** 2 for x in vector) / vector.shape[0]
    return vector / (mean_square + eps) ** 0.5 * weight


@pytest.mark.parametrize(("sets", "split"), [(1, 1), (1, 2), (3, 1), (2, 2)])
@torch.no_grad()
def test_context_chunks_become_keys_and_values_as_stated(
    sets: int, split: int, make_model: Callable[..., OneRecV2], toy_config: OneRecConfig
) -> None:
    config = dataclasses.replace(toy_config, kv_sets=sets, kv_split=split)
    processor = make_model(config).context
    codes = torch.randint(0, 5, (2, 4, 3), generator=torch.Generator().manual_seed(0))
    context = processor(codes, torch.ones(2, 4, dtype=torch.bool))
    assert len(context.keys) == len(context.values) == sets
    for batch in range(2):
        for place in range(5):
            if place == 0:
                token = processor.profile
            else:
                parts = [processor.embed[level].weight[codes[batch, place - 1, level]] for level in range(3)]
                hidden = processor.hidden.weight @ torch.cat(parts) + processor.hidden.bias
                hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
                token = processor.project.weight @ hidden + processor.recency.weight[place - 1]
            chunks = token.view(split * sets, config.kv_groups, config.head_dim)
            for j in range(sets):
                for group in range(config.kv_groups):
                    key = _rms(chunks[j * split][group], processor.norms[j * split].weight, config.norm_eps)
                    last = j * split + split - 1
                    value = _rms(chunks[last][group], processor.norms[last].weight, config.norm_eps)
                    torch.testing.assert_close(context.keys[j][batch, group, place], key)
                    torch.testing.assert_close(context.values[j][batch, group, place], value)


@torch.no_grad()
def test_context_without_split_shares_one_storage_for_keys_and_values(
    make_model: Callable[..., OneRecV2], toy_config: OneRecConfig
) -> None:
    codes, valid = torch.zeros(1, 2, 3, dtype=torch.int64), torch.ones(1, 2, dtype=torch.bool)
    shared = make_model(dataclasses.replace(toy_config, kv_split=1)).context(codes, valid)
    assert all(key is value for key, value in zip(shared.keys, shared.values, strict=True))
    parted = make_model(dataclasses.replace(toy_config, kv_split=2)).context(codes, valid)
    assert not torch.equal(parted.keys[0], parted.values[0])


@torch.no_grad()
def test_context_mask_always_lets_the_profile_token_be_read(toy_model: OneRecV2) -> None:
    valid = torch.tensor([[True, False], [False, False]])
    context = toy_model.context(torch.zeros(2, 2, 3, dtype=torch.int64), valid)
    assert context.mask[:, 0, 0].tolist() == [[True, True, False], [True, False, False]]


@torch.no_grad()
def test_context_item_does_not_depend_on_its_neighbours(toy_model: OneRecV2) -> None:
    codes = torch.randint(0, 5, (1, 3, 3), generator=torch.Generator().manual_seed(1))
    other = codes.clone()
    other[0, 0] = (other[0, 0] + 1) % 5
    valid = torch.ones(1, 3, dtype=torch.bool)
    before, after = toy_model.context(codes, valid), toy_model.context(other, valid)
    assert torch.equal(before.keys[0][:, :, 2:], after.keys[0][:, :, 2:])
    assert not torch.equal(before.keys[0][:, :, 1], after.keys[0][:, :, 1])


@torch.no_grad()
def test_context_pathways_add_their_marks_to_encodings_shared_by_all(
    make_model: Callable[..., OneRecV2], pathway_config: OneRecConfig
) -> None:
    processor = make_model(pathway_config).context
    table = processor.place_table()
    assert table.shape == (pathway_config.context_items, pathway_config.context_width)
    recency, positive = processor.recency.weight, processor.positive_recency.weight
    for place in range(pathway_config.context_items):
        if place < pathway_config.short_term:
            expected = recency[place] + processor.short_term
        elif place < pathway_config.context_len:
            expected = recency[place]
        else:
            expected = positive[place - pathway_config.context_len] + processor.positive
        torch.testing.assert_close(table[place], expected)


def test_context_pathways_start_out_as_if_they_had_no_marks(pathway_config: OneRecConfig) -> None:
    processor = OneRecV2(pathway_config).context
    assert not any(bool(x.any()) for x in (processor.short_term, processor.positive, processor.features.weight))
    assert 0.05 < float(processor.positive_recency.weight.detach().std()) < 0.2


@torch.no_grad()
def test_context_profile_is_a_sum_that_padding_does_not_change(
    make_model: Callable[..., OneRecV2], pathway_config: OneRecConfig
) -> None:
    processor = make_model(pathway_config).context
    items = torch.zeros(1, 0, pathway_config.context_width)
    two = processor.chunks(items, features=torch.tensor([[1, 4]]))
    padded = processor.chunks(items, features=torch.tensor([[1, 4, -1, -1, -1]]))
    assert all(torch.equal(a, b) for a, b in zip(two, padded, strict=True))
    token = processor.profile + processor.features.weight[1] + processor.features.weight[4]
    processor.profile.copy_(token)
    for got, expected in zip(two, processor.chunks(items), strict=True):
        torch.testing.assert_close(got, expected)


@torch.no_grad()
def test_context_longer_than_its_places_is_refused(
    make_model: Callable[..., OneRecV2], pathway_config: OneRecConfig
) -> None:
    """The places behind the history's are the liked items', not a longer history's."""
    length = pathway_config.context_len + 1
    with pytest.raises(RuntimeError, match="size"):
        make_model(pathway_config).context(
            torch.zeros(1, length, 3, dtype=torch.int64), torch.ones(1, length, dtype=torch.bool)
        )


@pytest.mark.parametrize("length", [1, 512, 4096])
@torch.no_grad()
def test_context_of_up_to_4096_items_works_and_equals_its_items_alone(
    length: int, make_model: Callable[..., OneRecV2], pathway_config: OneRecConfig
) -> None:
    config = dataclasses.replace(pathway_config, context_len=length, short_term=min(20, length), positive_len=256)
    processor = make_model(config).context
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 5, (1, config.context_items, 3), generator=generator)
    valid = torch.ones(1, config.context_items, dtype=torch.bool)
    context = processor(codes, valid, torch.arange(config.context_items))
    assert context.keys[0].shape == (1, config.kv_groups, config.context_tokens, config.head_dim)
    for place in {0, length // 2, length - 1, length, config.context_items - 1}:
        alone = processor(codes[:, [place]], valid[:, :1], torch.tensor([place]))
        torch.testing.assert_close(context.keys[0][:, :, 1 + place], alone.keys[0][:, :, 1])
        torch.testing.assert_close(context.values[-1][:, :, 1 + place], alone.values[-1][:, :, 1])


@pytest.mark.parametrize("name", ["0.1B", "8B", "moe-4b"])
def test_context_of_4096_items_of_the_papers_sizes_has_the_stated_shape(name: str) -> None:
    config = dataclasses.replace(
        PRESETS[name], context_len=3840, short_term=20, positive_len=256, profile_features=10_000
    )
    with torch.device("meta"):
        processor = ContextProcessor(config)
        codes, valid = torch.zeros(2, 4096, 3, dtype=torch.int64), torch.ones(2, 4096, dtype=torch.bool)
        context = processor(codes, valid, torch.arange(4096), torch.zeros(2, 3, dtype=torch.int64))
    assert context.keys[0].shape == (2, config.kv_groups, 4097, config.head_dim)
    assert context.mask.shape == (2, 1, 1, 4097)
