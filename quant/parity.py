"""Whether a quantised model recommends what the plain one does: accuracy and agreement, beside a control.

Agreement alone says little: the same model in another arithmetic already changes answers. So every comparison
stands beside a control, the plain model in bfloat16 against itself: in float32 and, in a thorough report, in other
kernels of the same precision (`quant.control`), which is what replacing one engine by another does anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.data import IntArray
from model.evaluate import Accuracy, accuracy, ranker_of
from model.recommender import Recommender
from model.split import Split
from quant.control import in_other_kernels
from quant.errors import QuantError
from quant.fidelity import Fidelity, fidelity
from quant.load import load_recommender
from quant.sampling import Positions
from quant.table import Table, table

RBO_PERSISTENCE = 0.9
CONTROL = "bf16 against fp32 (control)"
KERNELS = "bf16 in other kernels"
KERNEL_CONTROL = f"{KERNELS} against bf16 (control)"
SAMPLED_USERS = 64
"""Whose histories the nearness of the numbers is measured on."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Means over users of how two top-k lists agree.

    overlap: share of the k items that both have; top1_changed: share of users whose first item differs;
    rank_biased_overlap: RBO_ext of Webber, Moffat and Zobel (2010), eq. 32, persistence 0.9.
    """

    name: str
    k: int
    users: int
    overlap: float
    top1_changed: float
    rank_biased_overlap: float


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Accuracy of every variant on the same users, and the agreement of pairs of them.

    A thorough report also has the agreement of the whole beams, and how near the numbers are.
    """

    accuracies: Mapping[str, Accuracy]
    agreements: tuple[Agreement, ...]
    beams: tuple[Agreement, ...] = ()
    fidelities: tuple[Fidelity, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "accuracies": {name: asdict(value) for name, value in self.accuracies.items()},
            "agreements": [asdict(agreement) for agreement in self.agreements],
            "beams": [asdict(agreement) for agreement in self.beams],
            "fidelities": [asdict(found) for found in self.fidelities],
        }

    def accuracy_table(self) -> Table:
        """One row per variant."""
        k = next(iter(self.accuracies.values())).k
        rows = [(name, f"{a.hit_rate:.4f}", f"{a.ndcg:.4f}", str(a.users)) for name, a in self.accuracies.items()]
        return table(
            "Accuracy, leave-one-out over the whole catalogue", ("variant", f"HR@{k}", f"NDCG@{k}", "users"), rows
        )

    def agreement_table(self) -> Table:
        """One row per pair."""
        k = self.agreements[0].k
        columns = ("pair", f"top-{k} overlap", "top-1 changed", "rank-biased overlap")
        rows = [
            (a.name, f"{a.overlap:.1%}", f"{a.top1_changed:.1%}", f"{a.rank_biased_overlap:.3f}")
            for a in self.agreements
        ]
        return table("Agreement of the answers", columns, rows)


def parity(
    plain_dir: Path | str,
    quantised_dir: Path | str,
    split: Split,
    k: int = 10,
    *,
    device: torch.device | str = "cpu",
    thorough: bool = False,
) -> ParityReport:
    """Compare the checkpoint `quantised_dir` with the plain one it was made from, on the test items of `split`.

    fp32 and bf16 are the plain checkpoint in float32 and in bfloat16 arithmetic, fp8 is the quantised one as it is
    served. Raises CheckpointError, DeviceError, or QuantError when the two checkpoints have different catalogues.
    """
    bf16 = Recommender.load(plain_dir, device, torch.bfloat16)
    variants = {
        "fp32": Recommender.load(plain_dir, device, torch.float32),
        "bf16": bf16,
        "fp8": load_recommender(quantised_dir, device),
    }
    pairs = [("fp8 against bf16", "fp8", "bf16"), ("fp8 against fp32", "fp8", "fp32"), (CONTROL, "bf16", "fp32")]
    if not thorough:
        return compare(variants, pairs, split, k)
    variants[KERNELS] = in_other_kernels(bf16)
    pairs.append((KERNEL_CONTROL, KERNELS, "bf16"))
    found = compare(variants, pairs, split, k, width=bf16.beam_width)
    users = split.evaluated_users()[:SAMPLED_USERS]
    positions = Positions.of([split.history(int(user), with_validation=True).tolist() for user in users])
    near = [fidelity(name, variants[one], variants[other], positions) for name, one, other in pairs]
    return replace(found, fidelities=tuple(near))


def compare(
    variants: Mapping[str, Recommender],
    pairs: Sequence[tuple[str, str, str]],
    split: Split,
    k: int,
    *,
    width: int | None = None,
) -> ParityReport:
    """Rank for every evaluated user by every variant; `pairs` are (name, one variant, another).

    With `width` the sets of the first `width` items, the whole beam, are compared, too.
    """
    users = split.evaluated_users()
    histories = [split.history(int(user), with_validation=True) for user in users]
    targets = split.test[users]
    beams: dict[str, IntArray] = {}
    for name, recommender in variants.items():
        if recommender.catalogue.ids != split.interactions.items:
            raise QuantError(f"{name}: its catalogue is not that of the interactions")
        beams[name] = ranker_of(recommender)(histories, max(k, width or k))
    ranked = {name: lists[:, :k] for name, lists in beams.items()}
    return ParityReport(
        accuracies={name: accuracy(lists, targets, split.n_items) for name, lists in ranked.items()},
        agreements=tuple(agreement(name, ranked[one], ranked[other]) for name, one, other in pairs),
        beams=() if width is None else tuple(agreement(name, beams[one], beams[other]) for name, one, other in pairs),
    )


def agreement(name: str, one: IntArray, other: IntArray) -> Agreement:
    """Two rankings [users, k] of distinct item indices, -1 where a list is shorter, which never agrees."""
    if one.shape != other.shape or one.ndim != 2 or 0 in one.shape:
        raise QuantError(f"{name}: rankings of shapes {one.shape} and {other.shape} cannot be compared")
    same = (one[:, :, None] == other[:, None, :]) & (one[:, :, None] >= 0)
    users, k = one.shape
    common = np.stack([same[:, :depth, :depth].sum(axis=(1, 2)) for depth in range(1, k + 1)], axis=1)
    return Agreement(
        name=name,
        k=k,
        users=users,
        overlap=float(common[:, -1].mean() / k),
        top1_changed=float((one[:, 0] != other[:, 0]).mean()),
        rank_biased_overlap=float(_rbo(common).mean()),
    )


def _rbo(common: npt.NDArray[np.int64], p: float = RBO_PERSISTENCE) -> npt.NDArray[np.float64]:
    """common [users, k]: items shared by the first d places of both -> RBO_ext [users], 1 for equal lists.

    RBO_ext = (X_k / k) p^k + ((1 - p) / p) · sum over d of (X_d / d) p^d, with X_d the common items at depth d.
    """
    depth = np.arange(1, common.shape[1] + 1)
    share = common / depth
    tail: npt.NDArray[np.float64] = share[:, -1] * p ** common.shape[1]
    total: npt.NDArray[np.float64] = tail + (1 - p) / p * (share * p**depth).sum(axis=1)
    return total
