from __future__ import annotations

import pytest
import torch
from torch import nn

from quant.convert import quantise_layer
from quant.linear import Fp8Linear
from quant.primitives import E4M3, sqnr_db
from quant.recipes import Fp8Recipe


def twins(bias: bool = True) -> tuple[nn.Linear, Fp8Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(64, 48, bias=bias)
    quantised = quantise_layer("layer", plain, Fp8Recipe("x"))
    assert isinstance(quantised, Fp8Linear)
    return plain, quantised


@torch.no_grad()
def test_answers_of_the_twin_are_close_but_not_equal() -> None:
    plain, quantised = twins()
    x = torch.randn(100, 64)
    assert 26.0 < sqnr_db(plain(x), quantised(x)) < 34.0
    assert (quantised.in_features, quantised.out_features) == (64, 48)


@torch.no_grad()
def test_casting_moves_everything_but_codes_and_scales() -> None:
    _, quantised = twins()
    codes, scale = quantised.weight.view(torch.uint8).clone(), quantised.weight_scale.clone()
    x = torch.randn(9, 64)
    before = quantised(x)
    quantised.to(torch.bfloat16)
    assert quantised.weight.dtype == E4M3
    assert quantised.weight_scale.dtype == torch.float32
    assert quantised.bias is not None
    assert quantised.bias.dtype == torch.bfloat16
    assert quantised(x.bfloat16()).dtype == torch.bfloat16
    quantised.float()
    assert torch.equal(quantised.weight.view(torch.uint8), codes)
    assert torch.equal(quantised.weight_scale, scale)
    torch.testing.assert_close(quantised(x), before, atol=1e-2, rtol=0)  # the bias went through bfloat16


@torch.no_grad()
def test_a_move_never_casts_codes_on_the_way() -> None:
    _, quantised = twins()
    seen: list[tuple[torch.dtype, int]] = []

    def cast(value: torch.Tensor) -> torch.Tensor:
        seen.append((value.dtype, value.numel()))
        return value.to("cpu", torch.bfloat16)

    names = list(quantised.state_dict())
    quantised._apply(cast)
    assert [count for dtype, count in seen if dtype == E4M3] == [0]
    assert list(quantised.state_dict()) == names
    assert quantised.to_empty(device="meta").weight.is_meta


@torch.no_grad()
def test_a_failed_move_leaves_codes_where_they_were() -> None:
    _, quantised = twins()
    codes = quantised.weight

    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        quantised._apply(refuse)
    assert quantised.weight is codes


@torch.no_grad()
def test_cached_weights_follow_a_new_state() -> None:
    _, one = twins()
    torch.manual_seed(1)
    other = quantise_layer("layer", nn.Linear(64, 48), Fp8Recipe("x"))
    x = torch.randn(3, 64)
    one(x)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(x), other(x))


@torch.no_grad()
def test_an_empty_twin_filled_from_a_state_answers_alike() -> None:
    for bias in (True, False):
        plain, quantised = twins(bias)
        hollow = Fp8Linear.empty_like(plain)
        assert hollow.weight.is_meta
        hollow.load_state_dict(quantised.state_dict(), assign=True)
        x = torch.randn(5, 64)
        assert torch.equal(hollow(x), quantised(x))


def test_prepare_makes_the_weights_of_the_examples_dtype() -> None:
    _, quantised = twins()
    quantised.prepare(torch.zeros(1, dtype=torch.bfloat16))
    made = quantised.dequantised(torch.bfloat16)
    assert made.dtype == torch.bfloat16
    assert quantised.dequantised(torch.bfloat16) is made
