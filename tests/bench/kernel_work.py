"""What each call of the engine's functions has to do, from its arguments' shapes: operations, and bytes that must move.

Bytes are a lower bound: every tensor that a call is given or gives back is moved once, except where a call is known to
read or write only a part of it. `CALLS` says which functions of `model.engine.decode` are known; a name that the
engine no longer has is listed by `missing`, and what it did instead shows up as "other" in the roofline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from model.config import OneRecConfig

GROUPED_ROWS = 128
"""Rows of a tile of the grouped product; buffers are padded to it."""


@dataclass(frozen=True, slots=True)
class Work:
    """One call: its row in the table, operations, bytes, and whether its products run in FP8."""

    name: str
    flop: float
    byte: float
    eight: bool


Count = Callable[[OneRecConfig, Mapping[str, Any], Any], Work]
"""(configuration, arguments by name, what was returned) -> work."""


def tensors(value: object) -> Iterator[Tensor]:
    """All tensors in tuples, lists and dataclasses, as often as they are met."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors(one)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def moved(*values: object) -> float:
    """Bytes of the distinct tensors in `values`: views of one storage that start alike count once, the larger one."""
    seen: dict[int, int] = {}
    for tensor in tensors(values):
        seen[tensor.data_ptr()] = max(seen.get(tensor.data_ptr(), 0), tensor.numel() * tensor.element_size())
    return float(sum(seen.values()))


def is_eight(value: object) -> bool:
    """Whether there is an E4M3 tensor among these."""
    return any(tensor.element_size() == 1 and tensor.is_floating_point() for tensor in tensors(value))


def product(config: OneRecConfig, given: Mapping[str, Any], out: Any) -> Work:
    """A dense product of rows [T, K] with a matrix of N rows."""
    rows, matrix = given["rows"], given["matrix"]
    values = rows if isinstance(rows, Tensor) else rows.values
    tokens, wide = values.shape
    width = (out if isinstance(out, Tensor) else out.values).shape[-1]
    title = f"linear {wide}→{width}"
    read = moved(values, None if isinstance(rows, Tensor) else rows.scale, matrix, out)
    return Work(title, 2.0 * tokens * wide * width, read, is_eight(matrix))


def added(config: OneRecConfig, given: Mapping[str, Any], out: Any) -> Work:
    """A dense product that is added to h, which is read and written."""
    h = given["h"]
    work = product(config, given, h)
    return Work(work.name + " added", work.flop, work.byte + moved(h), work.eight)


def cross(config: OneRecConfig, given: Mapping[str, Any], out: Any) -> Work:
    """Scores and mixing over keys that a request's beams share; one beam reads keys that are values once."""
    q, context = given["q"], given["self"]
    length = context.key.shape[2]
    flop = 4.0 * q.values.shape[0] * length * config.d_model
    read: object = context
    if hasattr(context, "value_rows"):  # which are the keys where those are the values
        read = (context.key, context.value_rows if given["beams"] == 1 else context.value)
    return Work("cross attention", flop, moved(q, read, out), is_eight(context))


def own(config: OneRecConfig, given: Mapping[str, Any], out: Any) -> Work:
    """Over the tokens so far; of a past row of q, k and v the last two thirds are read, for every beam anew."""
    qkv, past = given["qkv"], [one.values for one in given["past"]]
    rows = qkv.values.shape[0]
    flop = 4.0 * rows * (len(past) + 1) * config.d_model
    earlier = sum(min(rows, one.shape[0]) * one.shape[1] * one.element_size() * 2 / 3 for one in past)
    return Work("self attention", flop, moved(qkv, out) + earlier, False)


def norm(config: OneRecConfig, given: Mapping[str, Any], out: Any) -> Work:
    """Reads h and what is to be added, writes h and the normalised rows."""
    h, mixed = given["h"], given["mixed"]
    byte = _summed(h, mixed) + float(h.numel() * out.values.element_size())
    return Work("norm" if mixed is None else "mix experts and norm", 0.0, byte, False)


def _summed(h: Tensor, mixed: Any) -> float:
    """h is read, and with experts' outputs, of which each row gathers its own, written."""
    one = float(h.numel())
    if mixed is None:
        return one * h.element_size()
    gathered = one * mixed.share.shape[1] * mixed.rows.values.element_size()
    return 2 * one * h.element_size() + gathered + moved(mixed.chosen, mixed.share)


def grouped(config: OneRecConfig, given: Mapping[str, Any], out: Any) -> Work:
    """Rows that are somebody's (not the padding) times their experts' matrices."""
    matrix, rows = given["self"], given["real_rows"]
    gated = matrix.gated
    wide, written = matrix.weight.shape[2], out.values.shape[1]
    width = 2 * written if gated else written
    read = given["rows"].values.shape[0] if matrix.gathers else rows  # each row once, by whichever experts
    byte = float(read * wide * matrix.weight.element_size() + rows * written * out.values.element_size())
    title = f"experts {'up' if gated else 'down'}"
    return Work(title, 2.0 * rows * wide * width, moved(matrix) + byte, is_eight(matrix))


def gated_all(config: OneRecConfig, given: Mapping[str, Any], out: Any) -> Work:
    """All rows times gate and up; their halves are multiplied before they are written."""
    matrix, rows = given["self"], given["rows"]
    tokens, wide = rows.values.shape
    width = out.values.shape[1]
    title = f"gated linear {wide}→{2 * width}"
    return Work(title, 4.0 * tokens * wide * width, moved(matrix, rows, out), is_eight(matrix))


def chosen(config: OneRecConfig, given: Mapping[str, Any], out: Any) -> Work:
    """Reads h, writes who was chosen with which share, and whose each row is; the router's product is in 16 bit."""
    h, router = given["h"], given["router"].weight
    byte = moved(h, router, out.chosen, out.share) + 4.0 * out.share.numel()
    return Work("choose experts", 2.0 * h.shape[0] * router.numel(), byte, False)


def dispatched(config: OneRecConfig, given: Mapping[str, Any], out: Any) -> Work:
    """Reads h and who was chosen, writes each row for each of its experts, with its scales."""
    h, choice = given["h"], given["choice"]
    row = out.values.shape[1] * out.values.element_size()
    row += 0 if out.scale is None else out.scale.element_size()
    return Work("norm and dispatch", 0.0, moved(h, choice.chosen) + float(choice.share.numel() * row), False)


def headed(config: OneRecConfig, given: Mapping[str, Any], out: Any) -> Work:
    """The last sums and norm, every logit, which is written and read in 16 bit, and the beams chosen by them."""
    head, h, scores = given["self"], given["h"], given["scores"]
    matrix = head.weights.matrix
    codes, d = matrix.shape
    eight = hasattr(head, "screens") and bool(head.screens(scores, given["k"]))
    stored = head.packed.weight if eight else matrix
    byte = _summed(h, given["pending"]) + moved(stored, scores, out)
    byte += 2.0 * h.numel() * stored.element_size() + 4.0 * h.shape[0] * codes
    return Work("head and selection", 2.0 * h.shape[0] * codes * d, byte, eight)


def gate(config: OneRecConfig, given: Mapping[str, Any], out: Any) -> Work:
    """Reads both halves, writes their product."""
    return Work("swiglu", 0.0, moved(next(iter(given.values())), out), False)


CALLS: dict[str, Count] = {
    "self_attention": own,
    "add_norm": norm,
    "choose": chosen,
    "norm_dispatch": dispatched,
    "swiglu": gate,
}
"""By their names in `model.engine.decode`; dense products are caught at the arithmetic."""

METHODS: dict[str, Count] = {"attend": cross, "product": grouped, "of_all": gated_all, "best": headed}
"""Of contexts, experts' matrices and heads, which bring their kernels with them."""


def methods() -> Iterator[tuple[type, str]]:
    """Every class of the engine that has one of METHODS, with its name."""
    from model.engine.cross_attention import ContextRows
    from model.engine.grouped import ExpertMatrix
    from model.engine.head import PlainHead
    from quant.kernels.attention import PackedContext
    from quant.kernels.experts import PackedExperts
    from quant.kernels.screened_head import ScreenedHead

    yield from ((ContextRows, "attend"), (PackedContext, "attend"))
    yield from ((ExpertMatrix, "product"), (PackedExperts, "product"), (PackedExperts, "of_all"))
    yield from ((PlainHead, "best"), (ScreenedHead, "best"))


def missing(module: object) -> list[str]:
    """Names of CALLS that the module does not have."""
    return [name for name in CALLS if not hasattr(module, name)]
