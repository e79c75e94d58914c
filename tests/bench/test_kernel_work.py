"""Operations and bytes of a call follow from its shapes, as counted by hand."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from kernel_work import (
    added,
    chosen,
    cross,
    dispatched,
    gate,
    gated_all,
    grouped,
    headed,
    is_eight,
    missing,
    moved,
    norm,
    own,
    product,
)

from model.config import OneRecConfig

CONFIG = OneRecConfig(
    d_model=256, n_layers=2, n_heads=4, kv_groups=4, context_len=10, ffn_dim=512, sid_embed_dim=16, codebook_size=1024
)
E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Rows:
    values: torch.Tensor
    scale: torch.Tensor | None = None


def half(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.bfloat16)


def test_a_dense_product() -> None:
    given = {"rows": Rows(half(20, 256)), "matrix": half(768, 256)}
    work = product(CONFIG, given, half(20, 768))
    assert (work.name, work.flop, work.eight) == ("linear 256→768", 2 * 20 * 256 * 768, False)
    assert work.byte == 2 * (20 * 256 + 768 * 256 + 20 * 768)
    eight = {"rows": Rows(half(20, 256).to(E4M3), torch.ones(20)), "matrix": half(768, 256).to(E4M3)}
    work = product(CONFIG, eight, half(20, 768))
    assert (work.eight, work.byte) == (True, 20 * 256 + 4 * 20 + 768 * 256 + 2 * 20 * 768)
    assert product(CONFIG, eight, Rows(half(20, 768).to(E4M3), torch.ones(20))).byte == work.byte - 20 * 768 + 4 * 20


def test_a_product_that_is_added_reads_what_it_is_added_to() -> None:
    given = {"h": half(20, 768), "rows": Rows(half(20, 256)), "matrix": half(768, 256)}
    work = added(CONFIG, given, None)
    assert (work.name, work.flop) == ("linear 256→768 added", 2 * 20 * 256 * 768)
    assert work.byte == 2 * (20 * 256 + 768 * 256 + 2 * 20 * 768)


def test_cross_attention_reads_a_context_once_for_all_its_beams() -> None:
    key = half(2, 4, 100, 64)
    context = SimpleNamespace(key=key)
    work = cross(CONFIG, {"q": Rows(half(16, 256)), "self": context, "beams": 8}, half(16, 256))
    assert work.flop == 4 * 16 * 100 * 256

    @dataclass(frozen=True)
    class Context:
        key: torch.Tensor
        value: torch.Tensor

    work = cross(CONFIG, {"q": Rows(half(16, 256)), "self": Context(key, key), "beams": 8}, half(16, 256))
    assert work.byte == 2 * (16 * 256 + key.numel() + 16 * 256)


def test_self_attention_reads_two_thirds_of_the_past() -> None:
    past = (Rows(half(2, 768)), Rows(half(16, 768)))
    work = own(CONFIG, {"qkv": Rows(half(16, 768)), "past": past}, half(16, 256))
    assert work.flop == 4 * 16 * 3 * 256
    assert work.byte == 2 * (16 * 768 + 16 * 256) + 2 * 2 * 512 + 16 * 2 * 512


def test_norm_reads_and_writes_the_residual() -> None:
    h, one = half(10, 256), 10 * 256 * 2
    assert norm(CONFIG, {"h": h, "mixed": None}, Rows(half(10, 256))).byte == 2 * one
    mixed = SimpleNamespace(rows=Rows(half(99, 256)), chosen=torch.zeros(10, 3), share=torch.zeros(10, 4))
    work = norm(CONFIG, {"h": h, "mixed": mixed}, Rows(half(10, 256)))
    assert (work.name, work.byte) == ("mix experts and norm", 2 * one + 4 * one + 120 + 160 + one)


def test_experts_are_asked_for_the_rows_that_are_somebodys() -> None:
    matrix = SimpleNamespace(weight=half(5, 512, 256), gated=True, gathers=False)
    given = {"self": matrix, "real_rows": 40, "rows": Rows(half(10, 256))}
    work = grouped(CONFIG, given, Rows(half(384, 256)))
    assert (work.name, work.flop) == ("experts up", 2 * 40 * 256 * 512)
    assert work.byte == 40 * (256 * 2 + 256 * 2)  # a namespace is no dataclass, so its matrices are not found
    matrix.gathers = True  # each row is read once, by whichever experts
    assert grouped(CONFIG, given, Rows(half(384, 256))).byte == 10 * 256 * 2 + 40 * 256 * 2
    given["self"] = SimpleNamespace(weight=half(5, 512, 256), gated=False, gathers=False)
    assert grouped(CONFIG, given, Rows(half(384, 512))).name == "experts down"


def test_a_gated_product_writes_half_of_what_it_computes() -> None:
    rows = Rows(half(20, 256).to(E4M3), torch.ones(20))
    given = {"self": SimpleNamespace(weight=half(1, 1024, 256).to(E4M3)), "rows": rows}
    work = gated_all(CONFIG, given, Rows(half(20, 512).to(E4M3), torch.ones(20)))
    assert (work.name, work.flop) == ("gated linear 256→1024", 2 * 20 * 256 * 1024)
    assert work.byte == 20 * 256 + 4 * 20 + 20 * 512 + 4 * 20


def test_what_is_bound_by_memory() -> None:
    assert gate(CONFIG, {"x": half(10, 512), "eight": False}, Rows(half(10, 256))).byte == 2 * (5120 + 2560)


def test_the_way_to_the_experts() -> None:
    h, one, who = half(10, 256), 10 * 256 * 2, torch.zeros(10, 3, dtype=torch.int32)
    choice = SimpleNamespace(chosen=who, share=torch.zeros(10, 4))
    work = chosen(CONFIG, {"h": h, "router": SimpleNamespace(weight=half(53, 256))}, choice)
    assert (work.name, work.flop, work.eight) == ("choose experts", 2 * 10 * 53 * 256, False)
    assert work.byte == one + 53 * 512 + 120 + 160 + 160
    given = {"h": h, "choice": choice}
    work = dispatched(CONFIG, given, Rows(half(640, 256)))
    assert (work.name, work.byte) == ("norm and dispatch", one + 120 + 4 * one)
    eight = Rows(half(640, 256).to(E4M3), torch.ones(640))
    assert dispatched(CONFIG, given, eight).byte == one + 120 + 40 * (256 + 4)


def test_a_head_writes_and_reads_every_logit() -> None:
    h, scores, matrix = half(10, 256), torch.zeros(2, 5), half(1024, 256)
    plain = SimpleNamespace(weights=SimpleNamespace(matrix=matrix))
    given = {"self": plain, "h": h, "pending": None, "scores": scores, "k": 4}
    work = headed(CONFIG, given, ())
    assert (work.flop, work.eight) == (2 * 10 * 1024 * 256, False)
    assert work.byte == 3 * 5120 + 1024 * 512 + 40 + 2 * 2 * 10240
    packed = SimpleNamespace(weight=matrix.to(E4M3))
    given["self"] = SimpleNamespace(weights=plain.weights, packed=packed, screens=lambda scores, k: scores.numel() > k)
    work = headed(CONFIG, given, ())
    assert (work.eight, work.byte) == (True, 5120 + 2 * 2560 + 1024 * 256 + 40 + 2 * 2 * 10240)


def test_a_tensor_that_is_met_twice_is_moved_once() -> None:
    one: Any = half(8, 8)
    assert moved(one, [one, (one[:4],)]) == 128
    assert is_eight([one]) is False
    assert is_eight((one, one.to(E4M3)))


def test_a_function_that_the_engine_lost_is_named() -> None:
    assert "swiglu" in missing(SimpleNamespace(add_norm=1))
    assert "add_norm" not in missing(SimpleNamespace(add_norm=1))
