from __future__ import annotations

from pathlib import Path

import pytest

from quant.crossover import Crossover, Timing, load_crossover, save_crossover
from quant.errors import QuantError

SHAPE = (1408, 1408)


def table(*fp8_over_bf16: tuple[int, float]) -> Crossover:
    return Crossover(tuple(Timing(rows, *SHAPE, fp8_us=ratio, bf16_us=1.0) for rows, ratio in fp8_over_bf16))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(1, False), (28, False), (511, False), (512, True), (2000, True), (4096, False), (9999, False)],
)
def test_the_next_lower_measurement_decides(rows: int, expected: bool) -> None:
    assert table((4096, 1.1), (8, 1.2), (512, 1.0)).takes_eight(rows, *SHAPE) is expected


def test_an_unmeasured_matrix_is_judged_by_its_size() -> None:
    measured = table((1, 0.5))
    assert not measured.takes_eight(512, 1408, 1407)
    assert measured.takes_eight(512, 1408, 4224)
    assert not Crossover().takes_eight(28, *SHAPE)


def test_only_what_is_missing_is_measured_and_new_timings_replace_old_ones() -> None:
    old = table((1, 2.0))
    assert old.missing((1, 2), (SHAPE, (8, 16))) == ((1, 8, 16), (2, 8, 16), (2, *SHAPE))
    new = old.with_timings([Timing(1, *SHAPE, 0.5, 1.0), Timing(2, *SHAPE, 0.5, 1.0)])
    assert len(new.timings) == 2
    assert new.takes_eight(1, *SHAPE)


def test_a_file_keeps_every_devices_timings_apart(tmp_path: Path) -> None:
    path = tmp_path / "crossover.json"
    assert load_crossover(path, "one") == Crossover()
    save_crossover(path, "one", table((1, 2.0)))
    save_crossover(path, "other", table((1, 0.5), (2, 0.5)))
    assert load_crossover(path, "one") == table((1, 2.0))
    assert load_crossover(path, "other") == table((1, 0.5), (2, 0.5))
    assert [entry.name for entry in tmp_path.iterdir()] == ["crossover.json"]


@pytest.mark.parametrize(
    "content", ["no json", "[]", '{"one": 3}', '{"one": [{"rows": 1}]}',
                '{"one": [{"rows": 1, "inner": 8, "outer": 8, "fp8_us": 0.0, "bf16_us": 1.0}]}'],
)  # fmt: skip
def test_a_foreign_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "crossover.json").write_text(content, encoding="utf-8")
    with pytest.raises(QuantError):
        load_crossover(tmp_path / "crossover.json", "one")
