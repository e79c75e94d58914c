from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from quant.errors import NonFiniteError, QuantError
from quant.primitives import (
    E4M3,
    E4M3_MAX,
    block_scale,
    dequantise,
    encode,
    holds_nan,
    quantise,
    require_finite,
    round_in_range,
    round_rows,
    round_runs,
    row_scale,
    spread_blocks,
    sqnr_db,
    tensor_scale,
)


def value_of(code: int) -> float:
    """The OCP definition of E4M3, read off the bits: the oracle that torch is checked against."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 0xF, code & 0x7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


TABLE = [value_of(code) for code in range(256)]
POSITIVE = TABLE[:127]  # codes 0x00..0x7E in increasing order, the parity of a code is that of its mantissa


def nearest(y: float) -> float:
    """Brute force: nearest value of the table, of two equally near ones that of the even code."""
    size = min(abs(y), E4M3_MAX)
    code = min(range(127), key=lambda code: (abs(POSITIVE[code] - size), code % 2))
    return math.copysign(POSITIVE[code], y)


def codes() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(E4M3)


def test_all_256_codes_decode_to_the_definition() -> None:
    decoded = dequantise(codes(), torch.ones(1)).tolist()
    for code, (found, expected) in enumerate(zip(decoded, TABLE, strict=True)):
        same = math.isnan(found) if math.isnan(expected) else found == expected
        assert same, f"code {code:#04x}: {found} instead of {expected}"
    assert max(POSITIVE) == E4M3_MAX
    assert POSITIVE[1] == 2.0**-9


def test_every_value_encodes_to_its_own_code() -> None:
    finite = [code for code in range(256) if not math.isnan(TABLE[code])]
    encoded = encode(torch.tensor([TABLE[code] for code in finite])).view(torch.uint8).tolist()
    assert encoded == finite
    assert torch.isnan(encode(torch.tensor([math.nan])).float()).all()


def between_neighbours() -> torch.Tensor:
    """Midpoints of all neighbouring values of both signs, and the floats just below and above each."""
    grid = torch.tensor(POSITIVE)
    middle = (grid[1:] + grid[:-1]) / 2
    points = torch.cat([middle, middle.nextafter(torch.zeros(1)), middle.nextafter(torch.full((1,), 1e9))])
    return torch.cat([points, -points])


@pytest.mark.parametrize("rounding", [lambda y: encode(y).float(), round_in_range], ids=["encode", "round_in_range"])
def test_rounding_is_to_nearest_with_ties_to_even(rounding) -> None:
    points = between_neighbours()
    expected = [nearest(y) for y in points.tolist()]
    assert rounding(points.clone()).tolist() == expected


def test_fast_rounding_equals_encoding_on_a_dense_grid() -> None:
    exponents = torch.linspace(-14, math.log2(448), 40001)
    points = torch.cat([exponents.exp2(), -exponents.exp2(), torch.zeros(1)])
    assert torch.equal(round_in_range(points.clone()), encode(points).float())


@given(st.floats(-464, 464, width=32))
def test_rounding_any_float_equals_brute_force(y: float) -> None:
    assert encode(torch.tensor([y])).float().item() == nearest(y)
    assert round_in_range(torch.tensor([y])).item() == nearest(y)


@pytest.mark.parametrize("y", [448.0, 449.0, 464.0, 465.0, 1e9, 3.4e38, math.inf])
def test_encoding_saturates_at_448(y: float) -> None:
    assert encode(torch.tensor([y, -y])).float().tolist() == [448.0, -448.0]


@pytest.mark.parametrize(
    ("steps", "expected"), [(0.0, 0), (0.5, 0), (0.51, 1), (1.0, 1), (1.5, 2), (2.5, 2), (7.0, 7), (7.5, 8), (8.0, 8)]
)
def test_subnormals_round_in_steps_of_two_to_minus_nine(steps: float, expected: int) -> None:
    y = torch.tensor([steps * 2.0**-9])
    assert encode(y).float().item() == expected * 2.0**-9
    assert round_in_range(y).item() == expected * 2.0**-9


def test_row_scale_maps_the_largest_magnitude_to_448() -> None:
    x = torch.randn(50, 33, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 6, 50)[:, None]
    codes_of_x = quantise(x, row_scale(x)).float()
    assert torch.equal(codes_of_x.abs().amax(1), torch.full((50,), 448.0))


def test_zero_rows_have_a_positive_scale_and_stay_zero() -> None:
    x = torch.zeros(3, 8)
    x[1] = 5.0
    values, scale = round_rows(x)
    assert (scale > 0).all()
    assert torch.isfinite(values).all()
    assert torch.equal((values * scale)[[0, 2]], torch.zeros(2, 8))
    torch.testing.assert_close((values * scale)[1], x[1])
    for other in (tensor_scale(torch.zeros(2, 4)), block_scale(torch.zeros(2, 4), (1, 2))):
        assert (other > 0).all()


def test_tensor_scale_is_one_number_for_all_rows() -> None:
    x = torch.tensor([[1.0, -2.0], [448.0, 3.0]])
    assert tensor_scale(x).tolist() == [[1.0], [1.0]]


def test_block_scale_equals_a_loop_over_blocks_with_ragged_edges() -> None:
    x = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(2))
    scale = block_scale(x, (3, 4))
    assert scale.shape == (2, 3, 3)
    for stack in range(2):
        for row in range(3):
            for column in range(3):
                block = x[stack, 3 * row : 3 * row + 3, 4 * column : 4 * column + 4]
                assert scale[stack, row, column].item() == pytest.approx(block.abs().max().item() / 448)
    spread = spread_blocks(scale, (3, 4), x.shape)
    assert spread.shape == x.shape
    assert spread[1, 6, 9] == scale[1, 2, 2]
    assert spread[0, 2, 4] == scale[0, 0, 1]
    with pytest.raises(QuantError, match="block"):
        block_scale(x, (0, 4))


def test_round_runs_keeps_an_outlier_to_its_own_run() -> None:
    x = torch.full((1, 256), 0.3)
    x[0, 0] = 1e6
    rounded = round_runs(x, 128)
    torch.testing.assert_close(rounded[0, 128:], x[0, 128:])
    assert (rounded[0, 1:128] == 0).all()


def test_non_finite_values_are_refused_with_the_layers_name() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(NonFiniteError, match=r"decoder\.blocks\.0\.cross\.wq: 1 of 4"):
            require_finite(torch.tensor([1.0, bad, 2.0, 3.0]), "decoder.blocks.0.cross.wq")
    require_finite(torch.ones(3), "fine")


def test_sqnr_of_known_noise_is_exact() -> None:
    signal = torch.full((100,), 10.0)
    assert sqnr_db(signal, signal + 1.0) == pytest.approx(20.0)
    assert sqnr_db(signal, signal) == math.inf
    with pytest.raises(QuantError, match="shapes"):
        sqnr_db(signal, signal[:3])


def gaussian_sqnr_db(sigma: float) -> float:
    """Expected SQNR of N(0, sigma²) rounded to E4M3, sigma in units of the scale.

    Between two neighbouring values a and b of the table the error is that of the nearer one; integrated numerically
    against the density, interval by interval, with what lies beyond 448 left out: the max-abs scale allows none.
    """
    noise = 0.0
    for low, high in itertools.pairwise(POSITIVE):
        y = np.linspace(low, high, 41)
        error = np.minimum(y - low, high - y) ** 2
        noise += 2 * float(np.trapezoid(error * stats.norm.pdf(y, scale=sigma), y))
    return 10 * math.log10(sigma**2 / noise)


@pytest.mark.parametrize("width", [64, 1024])
def test_gaussian_weights_reach_the_sqnr_that_theory_gives_a_max_abs_scale(width: int) -> None:
    """A relative step of 2^-3 with uniform error: 10·log10(768·E[m²]) for mantissas m in [1, 2), E[m²] 2.16 to 2.33,
    so about 32 dB; the exact value moves with where sigma lies within its power of two."""
    x = torch.randn(2**18 // width, width, generator=torch.Generator().manual_seed(3))
    scale = row_scale(x)
    measured = sqnr_db(x, dequantise(quantise(x, scale), scale))
    sigmas = np.quantile((1.0 / scale[:, 0]).numpy(), np.linspace(0.05, 0.95, 10))
    noise = np.mean([10 ** (-gaussian_sqnr_db(float(sigma)) / 10) for sigma in sigmas])
    expected = -10 * math.log10(float(noise))
    assert measured == pytest.approx(expected, abs=0.1)
    assert 31.0 < measured < 32.6


def test_one_bit_less_mantissa_misses_the_gaussian_bound() -> None:
    x = torch.randn(256, 1024, generator=torch.Generator().manual_seed(3))
    coarse = (x / row_scale(x)).to(torch.float8_e5m2).float() * row_scale(x)
    assert sqnr_db(x, coarse) < 27.0


def test_per_channel_scales_beat_per_tensor_ones_beside_an_outlier_channel() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(4))
    x[7] *= 1e5
    others = [row for row in range(64) if row != 7]
    by_row = dequantise(quantise(x, row_scale(x)), row_scale(x))
    by_tensor = dequantise(quantise(x, tensor_scale(x)), tensor_scale(x))
    assert sqnr_db(x[others], by_row[others]) > 31.0
    assert sqnr_db(x[others], by_tensor[others]) < 15.0


def test_nan_is_found_among_codes_by_their_bytes() -> None:
    for code in range(256):
        codes = torch.tensor([0x08, code, 0x88, 0x7E, 0xFE], dtype=torch.uint8).view(E4M3)
        assert holds_nan(codes) == math.isnan(value_of(code)) == bool(codes.float().isnan().any())
    assert not holds_nan(torch.empty(0, dtype=E4M3))
