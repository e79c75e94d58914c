from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.config import OneRecConfig
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
