"""Who is served what: an immutable table compiled from the experiments, and a pure function over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from experiment.assign import bucket, checked

if TYPE_CHECKING:
    from experiment.spec import ExperimentSpec
    from experiment.state import ExperimentRow

SPLIT = "SPLIT"
OVERRIDE = "TARGETING_MATCH"
DEFAULT = "DEFAULT"


@dataclass(frozen=True, slots=True)
class ArmRange:
    """The users of one arm: buckets in [start, end)."""

    arm: str
    variant: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class RoutingEntry:
    """One running experiment. arms: treatments in order, control last. phase: its ramp step.

    shadow: first requests are put to the other arm as well, and the slates compared.
    """

    experiment: str
    run: int
    seed: str
    layer: str
    layer_start: float
    layer_end: float
    phase: int
    latency_objective_ms: float
    arms: tuple[ArmRange, ...]
    overrides: Mapping[str, str]
    shadow: bool = False

    @property
    def control(self) -> ArmRange:
        return self.arms[-1]

    def arm(self, name: str) -> ArmRange | None:
        """The arm of this name, if the experiment has it."""
        return next((arm for arm in self.arms if arm.arm == name), None)


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """Everything that a gateway needs to route without asking anybody. `version` only grows."""

    version: int
    default_variant: str
    entries: tuple[RoutingEntry, ...] = ()

    def entry(self, experiment: str) -> RoutingEntry | None:
        """The running experiment of this key, if there is one."""
        return next((entry for entry in self.entries if entry.experiment == experiment), None)


@dataclass(frozen=True, slots=True)
class Route:
    """Where one user goes. arm is None outside every experiment; then the variant is the default one."""

    experiment: str | None
    run: int | None
    arm: str | None
    variant: str
    control_variant: str
    bucket: float | None
    phase: int | None
    forced: bool
    reason: str


def route(table: RoutingTable, user_id: str) -> Route:
    """The first running experiment that holds this user, or the default. Raises InvalidUserError.

    Every user outside the covered buckets gets the default variant and takes no part in the analysis.
    """
    checked(user_id)
    for entry in table.entries:
        if (name := entry.overrides.get(user_id)) is not None and (arm := entry.arm(name)) is not None:
            return _routed(entry, arm, bucket(entry.seed, user_id), OVERRIDE)
        if not entry.layer_start <= bucket(f"layer:{entry.layer}", user_id) < entry.layer_end:
            continue
        place = bucket(entry.seed, user_id)
        for arm in entry.arms:
            if arm.start <= place < arm.end:
                return _routed(entry, arm, place, SPLIT)
    variant = table.default_variant
    return Route(None, None, None, variant, variant, None, None, forced=False, reason=DEFAULT)


def _routed(entry: RoutingEntry, arm: ArmRange, place: float, reason: str) -> Route:
    return Route(
        entry.experiment,
        entry.run,
        arm.arm,
        arm.variant,
        entry.control.variant,
        place,
        entry.phase,
        forced=reason == OVERRIDE,
        reason=reason,
    )


def arm_ranges(spec: ExperimentSpec, coverage: float) -> tuple[ArmRange, ...]:
    """Arm i of n owns [i/n, i/n + coverage), control being the last: for two arms [0, c) and [0.5, 0.5 + c).

    Starts never move, so a wider coverage adds users to every arm alike and moves nobody.
    """
    n = len(spec.arms)
    return tuple(
        ArmRange(arm.arm, arm.variant, i / n, min(i / n + coverage, (i + 1) / n)) for i, arm in enumerate(spec.arms)
    )


def compile_table(
    rows: Sequence[ExperimentRow],
    overrides: Mapping[str, Mapping[str, str]],
    default_variant: str,
    version: int,
) -> RoutingTable:
    """The table that follows from the experiments' rows. Running and paused ones route, in order of creation.

    The experiment that was promoted last makes its winner the default variant.
    """
    promoted = [row for row in rows if row.state == "promoted" and row.ended_at is not None]
    if promoted:
        latest = max(promoted, key=lambda row: (row.ended_at, row.key))
        default_variant = latest.promoted_variant or default_variant
    active = sorted((row for row in rows if row.state in {"running", "paused"}), key=lambda row: row.created_at)
    entries = tuple(
        RoutingEntry(
            experiment=row.key,
            run=row.run,
            seed=row.spec.seed_of_run(row.run),
            layer=row.spec.layer.name,
            layer_start=row.spec.layer.start,
            layer_end=row.spec.layer.end,
            phase=row.step,
            latency_objective_ms=row.spec.latency_objective_ms,
            arms=arm_ranges(row.spec, row.spec.ramp.steps[row.step].coverage),
            overrides=dict(overrides.get(row.key, {})),
            shadow=row.spec.shadow,
        )
        for row in active
    )
    return RoutingTable(version, default_variant, entries)


def to_dict(table: RoutingTable) -> dict[str, Any]:
    """JSON-ready."""
    return asdict(table)


def from_dict(fields: Mapping[str, Any]) -> RoutingTable:
    """Inverse of `to_dict`. Raises KeyError or TypeError on anything else."""
    entries = tuple(
        RoutingEntry(**{**entry, "arms": tuple(ArmRange(**arm) for arm in entry["arms"])})
        for entry in fields["entries"]
    )
    return RoutingTable(fields["version"], fields["default_variant"], entries)
