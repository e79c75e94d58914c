"""Each kernel of the decode alone, at the shapes of the benchmark: time, rate, and the tilings that could be used.

    python tests/bench/decode_kernels.py [--batch 28] [--sweep] [--only GROUP ...]

Ceilings (copy bandwidth, dense products) are measured first, in the same run. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from triton.testing import do_bench

from model.config import PRESETS
from model.engine.arithmetic import ExpertProduct, SixteenBit
from model.engine.cross_attention import Tiles, cross_attention
from model.engine.grouped import GroupedTiles, grouped_product
from model.engine.norm import Rows, add_norm
from model.engine.routing import Choice, Router, choose, norm_dispatch
from model.engine.select import select_beams
from model.engine.self_attention import self_attention
from quant.kernels.attention import QUERY_ROOM
from quant.kernels.eight_bit import EightBit
from quant.kernels.rows import round_rows_to_eight
from quant.primitives import E4M3

CONFIG = PRESETS["moe-4b"]
D, HEADS, INNER = CONFIG.d_model, CONFIG.n_heads, CONFIG.expert_dim
WIDTH, CONTEXT = 512, 3072
GROUPS = ("ceilings", "rows", "experts", "attention")
SUSTAINED = "sustained"
"""In the name of a case that is measured for seconds, as decodes are: at its power limit a card lowers its clock."""

Case = tuple[str, float, str, Callable[[], object]]
"""Name, work, its unit (TFLOP or GB), call."""


def randn(*shape: int, std: float = 1.0) -> Tensor:
    """16-bit noise on the device."""
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * std


def ceilings() -> Iterator[Case]:
    """What the hardware gives to the simplest calls."""
    source = randn(1 << 30)
    target = torch.empty_like(source)
    yield "copy", 4 * source.numel() / 1e9, "GB", lambda: target.copy_(source)
    large = ((8192, 8192, 8192), (16384, 8192, 8192), (8192, 8192, 16384))
    for rows, wide, out in (*large, (14336, 1408, 4224), (14336, 1408, 1408), (57344, 1408, 2816)):
        x, w = randn(rows, wide), randn(out, wide, std=wide**-0.5)
        work = 2 * rows * wide * out / 1e12
        yield f"bf16 linear {rows}x{wide}x{out}", work, "TFLOP", lambda x=x, w=w: torch.nn.functional.linear(x, w)
        ones = torch.ones(wide, device="cuda", dtype=torch.bfloat16)
        x8, w8 = add_norm(x, None, ones, 1e-6, eight=True), EightBit().matrix(w)
        call = partial(EightBit().product, x8, w8)
        yield f"fp8 linear {rows}x{wide}x{out}", work, "TFLOP", call
        if (rows, wide, out) == large[0]:
            yield f"fp8 {SUSTAINED} linear {rows}x{wide}x{out}", work, "TFLOP", call


def router() -> Router:
    """A random one."""
    weight = randn(CONFIG.n_experts, D, std=D**-0.5)
    return Router(weight, torch.zeros(CONFIG.n_experts, device="cuda"), CONFIG.experts_per_token, 1)


def routed(first: ExpertProduct, batch: int) -> tuple[Rows, Choice, float]:
    """Rows of one level as the product wants them, how they are chosen, and how many an expert has to multiply."""
    h, ones = randn(batch * WIDTH, D), torch.ones(D, device="cuda", dtype=torch.bfloat16)
    choice = choose(h, 1e-6, router())
    if first.gathers:
        rows = add_norm(h, None, ones, 1e-6, eight=True)
    else:
        rows = norm_dispatch(h, ones, 1e-6, choice, eight=first.eight)
    return rows, choice, batch * WIDTH * 4.0


def experts(batch: int, sweep: bool) -> Iterator[Case]:
    """Grouped products, up with its gate and down, in both formats."""
    up, down = randn(54, 2 * INNER, D, std=D**-0.5), randn(54, D, INNER, std=INNER**-0.5)
    for arithmetic in (SixteenBit(), EightBit()):
        first, second = arithmetic.experts(up, down)
        placed, choice, rows = routed(first, batch)
        tiles = choice.tiles
        inner = first.product(placed, tiles)
        yield (
            f"{arithmetic.name} experts up", rows * 2 * D * 2 * INNER / 1e12, "TFLOP",
            lambda a=placed, m=first, e=tiles: m.product(a, e),
        )  # fmt: skip
        yield (
            f"{arithmetic.name} experts down", rows * 2 * D * INNER / 1e12, "TFLOP",
            lambda a=inner, m=second, e=tiles: m.product(a, e),
        )  # fmt: skip
        for columns, warps, stages in ((256, 8, 4), (128, 8, 4), (128, 4, 4)) if sweep and not arithmetic.eight else ():
            cut, title = GroupedTiles(columns, 128, warps, stages), f"{columns}/128/w{warps}/s{stages}"
            yield (
                f"{arithmetic.name} experts up {title}", rows * 2 * D * 2 * INNER / 1e12, "TFLOP",
                lambda t=cut, a=placed, m=first, e=tiles: grouped_product(a, m, e, gated=True, tiles=t),
            )  # fmt: skip
            yield (
                f"{arithmetic.name} experts down {title}", rows * 2 * D * INNER / 1e12, "TFLOP",
                lambda t=cut, a=inner, m=second, e=tiles: grouped_product(a, m, e, tiles=t),
            )  # fmt: skip
        if not arithmetic.eight:
            each = tiles.rows // 54 // 128 * 128
            ends = torch.arange(each, 54 * each + 1, each, device="cuda", dtype=torch.int32)
            yield (
                "bf16 torch._grouped_mm up", 54 * each * 2 * D * 2 * INNER / 1e12, "TFLOP",
                lambda a=placed.values, e=ends: torch._grouped_mm(a, up.transpose(-2, -1), offs=e),
            )  # fmt: skip


def attention(batch: int, sweep: bool) -> Iterator[Case]:
    """Attention over the context, beside SDPA."""
    q = randn(batch * WIDTH, D)
    key = torch.nn.functional.rms_norm(randn(batch, HEADS, CONTEXT, D // HEADS), (D // HEADS,))
    lengths = torch.full((batch,), CONTEXT, device="cuda", dtype=torch.int32)
    work = 4 * batch * WIDTH * CONTEXT * D / 1e12
    folded = q.view(batch, WIDTH, HEADS, -1).transpose(1, 2)
    yield "bf16 SDPA", work, "TFLOP", lambda: torch.nn.functional.scaled_dot_product_attention(folded, key, key)
    tilings: list[Tiles] = []
    if sweep:
        more = (
            (128, 128, 8, 3), (128, 64, 8, 3), (128, 64, 4, 3), (128, 128, 4, 2),
            (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 4), (64, 128, 4, 2), (64, 128, 4, 3), (64, 256, 4, 2),
            (128, 256, 8, 2), (256, 64, 8, 3),
        )  # fmt: skip
        tilings += [Tiles(*choice) for choice in more]
    for arithmetic in (SixteenBit(), EightBit()):
        context = arithmetic.context(key, key, lengths)
        asked = round_rows_to_eight(q, QUERY_ROOM) if arithmetic.eight else Rows(q)
        yield f"{arithmetic.name} cross attention", work, "TFLOP", lambda c=context, a=asked: c.attend(a, WIDTH, HEADS)
        for t in () if arithmetic.eight else tilings:
            yield (
                f"{arithmetic.name} cross attention {t.queries}/{t.keys}/w{t.warps}/s{t.stages}", work, "TFLOP",
                lambda t=t, c=context: cross_attention(q, c, WIDTH, HEADS, t),
            )  # fmt: skip


def rows(batch: int) -> Iterator[Case]:
    """What is bound by memory."""
    tokens = batch * WIDTH
    h, ones = randn(tokens, D), torch.ones(D, device="cuda", dtype=torch.bfloat16)
    first, qkv = randn(batch, 3 * D), randn(tokens, 3 * D)
    parent = torch.randint(0, WIDTH, (tokens,), device="cuda")
    one = tokens * D / 1e9
    asked = router()
    who = choose(h, 1e-6, asked)
    yield "choose experts", one * 2, "GB", lambda: choose(h, 1e-6, asked)
    for eight in (False, True):
        name, wide = ("fp8", 1) if eight else ("bf16", 2)
        yield f"{name} norm", one * (2 + wide), "GB", lambda e=eight: add_norm(h, None, ones, 1e-6, eight=e)
        outer = Rows(randn(who.tiles.rows, D))
        if eight:
            outer = Rows(outer.values.to(E4M3), torch.ones(who.tiles.rows, device="cuda"))
        mixed = who.mixed(outer)
        yield f"{name} mix, norm", one * (12 + wide), "GB", lambda e=eight, m=mixed: add_norm(h, m, ones, 1e-6, eight=e)
        yield (
            f"{name} norm, dispatch", one * (2 + 4 * wide), "GB",
            lambda e=eight, c=who: norm_dispatch(h, ones, 1e-6, c, eight=e),
        )  # fmt: skip
        own = Rows(qkv.to(E4M3), torch.ones(tokens, device="cuda")) if eight else Rows(qkv)
        yield (
            f"{name} self attention", one * (5 * wide + wide), "GB",
            lambda e=eight, x=own: self_attention(x, (Rows(first), x), (parent,), WIDTH, HEADS, eight=e),
        )  # fmt: skip
    scores, out = torch.randn(batch, WIDTH, device="cuda"), randn(tokens, CONFIG.codebook_size)
    yield "select", out.numel() * 2 / 1e9, "GB", lambda: select_beams(out, scores, WIDTH)
    head = randn(CONFIG.codebook_size, D)
    work = 2 * tokens * D * CONFIG.codebook_size / 1e12
    yield "bf16 head", work, "TFLOP", lambda: torch.nn.functional.linear(h, head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=28)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--only", choices=GROUPS, nargs="*", default=GROUPS)
    args = parser.parse_args()
    found: dict[str, float] = {}
    print(f"| kernel, {args.batch} requests | us | rate |\n|---|---|---|")
    with torch.inference_mode():
        groups = {
            "ceilings": ceilings(),
            "rows": rows(args.batch),
            "experts": experts(args.batch, args.sweep),
            "attention": attention(args.batch, args.sweep),
        }
        for wanted in args.only:
            try:
                for name, work, unit, call in groups[wanted]:
                    try:
                        warmup, rep = (1500, 1500) if SUSTAINED in name else (5, 40)
                        spent_ms = float(do_bench(call, warmup=warmup, rep=rep, return_mode="median"))
                    except Exception as error:  # one tiling that does not fit must not hide the others
                        print(f"| {name} | failed | {str(error).splitlines()[0][:100]} |", flush=True)
                        continue
                    found[name] = spent_ms * 1e3
                    print(f"| {name} | {spent_ms * 1e3:.1f} | {work / spent_ms * 1e3:.0f} {unit}/s |", flush=True)
            except Exception:
                traceback.print_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
