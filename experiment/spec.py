"""What an experiment is, as a person writes it down: validated at the edge, frozen and digested ever after."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from experiment.errors import SpecError
from experiment.metrics import METRICS

Name = Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Arm(_Part):
    """An arm of the experiment and the variant (a Serve application) that answers for it."""

    arm: Name
    variant: Name


class Layer(_Part):
    """A namespace: experiments with disjoint [start, end) of one layer never share a user."""

    name: Name = "default"
    start: float = Field(default=0.0, ge=0, lt=1)
    end: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"end: {self.end} must be above start {self.start}")
        return self


class Step(_Part):
    """One step of the ramp: the share of all users in EACH arm, and what it waits for."""

    coverage: float = Field(gt=0, le=0.5, description="share of the layer's users in each arm")
    min_users_per_arm: int = Field(default=100, ge=1)
    min_duration_s: Seconds = 3600.0


class Ramp(_Part):
    """Coverage only widens, so nobody ever changes arm."""

    steps: tuple[Step, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _widening(self) -> Self:
        for i, (before, after) in enumerate(zip(self.steps, self.steps[1:], strict=False), start=1):
            if after.coverage <= before.coverage:
                raise ValueError(
                    f"steps[{i}].coverage: {after.coverage} must be above the step before, {before.coverage}"
                )
        return self


class Planning(_Part):
    """What is expected of a metric in the control arm; it fixes the mixture variance before the first user.

    relative_sd: the square root of n·Var(estimate) over the estimate (about 1.85 for a CTR of 5 % and 20 impressions).
    users_per_arm: where the decision should be cheapest; four times off costs 4-9 % of the width.
    """

    baseline: float = Field(gt=0)
    relative_sd: float = Field(gt=0)
    users_per_arm: int = Field(ge=2)


class MetricSpec(_Part):
    """A metric and its part in the decision.

    success: must be proved better. guardrail: must be proved not worse than the margin, and rolls back on proved harm
    beyond `harm_margin` (the margin itself unless given; 0 is strict). signal: pauses while harm shows. quality: shown.
    """

    name: str
    role: Literal["success", "guardrail", "signal", "quality"]
    margin: Share | None = Field(default=None, description="relative, e.g. 0.02 = at most 2 % worse")
    harm_margin: float | None = Field(default=None, ge=0, lt=1)
    cap: float | None = Field(default=None, gt=0, description="a user's total counts up to here")
    planning: Planning

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        metric = METRICS.get(self.name)
        if metric is None:
            raise ValueError(f"name: unknown metric {self.name!r}; known are {', '.join(sorted(METRICS))}")
        if self.role in {"guardrail", "signal"} and self.margin is None:
            raise ValueError(f"margin: a {self.role} needs one")
        if self.cap is not None and not metric.cappable:
            raise ValueError(f"cap: {self.name} cannot be capped")
        return self


class Limit(_Part):
    """A hard limit on an arm's share of requests: a plain threshold, no statistics."""

    name: Literal["error_share", "slow_share"]
    max: Share
    min_requests: int = Field(default=100, ge=1)


class Alpha(_Part):
    """Error budgets, one-sided, over all looks."""

    promote: float = Field(default=0.05, gt=0, lt=0.5)
    rollback: float = Field(default=0.05, gt=0, lt=0.5)


class Minimums(_Part):
    """Burn-in per arm before any statistical verdict, and the shortest run that may be promoted."""

    users_per_arm: int = Field(default=400, ge=2)
    clicks_per_arm: int = Field(default=100, ge=0, description="of control; a treatment may have fewer")
    duration_s: Seconds = 7 * 86_400.0


class ExperimentSpec(_Part):
    """One experiment: who takes part, how it widens, what is measured, and what would stop it."""

    key: Name
    description: str = ""
    seed: str | None = Field(
        default=None, min_length=1, max_length=128, description="of the hash; the key unless given"
    )
    layer: Layer = Layer()
    control: Arm
    treatments: tuple[Arm, ...] = Field(min_length=1, max_length=9)
    ramp: Ramp
    exposure_window_s: float = Field(default=86_400.0, gt=0)
    latency_objective_ms: float = Field(default=200.0, gt=0)
    alpha: Alpha = Alpha()
    metrics: tuple[MetricSpec, ...] = Field(min_length=1)
    limits: tuple[Limit, ...] = ()
    minimums: Minimums = Minimums()
    max_duration_s: float = Field(default=28 * 86_400.0, gt=0, description="inconclusive after this: control stays")
    look_interval_s: float = Field(default=60.0, gt=0)
    shadow: bool = Field(
        default=False,
        description="ask the other arm, too, at a user's first request, for the effect on those whose slate differs",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [arm.arm for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError("treatments: arm names must differ from each other and from the control's")
        variants = [arm.variant for arm in self.arms]
        if len(set(variants)) < len(variants):
            raise ValueError("treatments: two arms with the same variant cannot differ")
        if self.shadow and len(self.treatments) > 1:
            raise ValueError(f"shadow: compares two slates, so it needs exactly one treatment, not {len(names) - 1}")
        widest = self.ramp.steps[-1].coverage
        if widest > 1 / len(names):
            raise ValueError(f"ramp.steps: coverage {widest} of {len(names)} arms is more than everybody")
        metrics = [metric.name for metric in self.metrics]
        for i, name in enumerate(metrics):
            if name in metrics[:i]:
                raise ValueError(f"metrics[{i}].name: {name!r} is listed twice")
        if not any(metric.role in {"guardrail", "success"} for metric in self.metrics):
            raise ValueError("metrics: at least one guardrail or success metric must be able to decide")
        if self.max_duration_s < self.minimums.duration_s:
            raise ValueError("max_duration_s: shorter than minimums.duration_s, so nothing could ever be promoted")
        return self

    @property
    def promote_alpha(self) -> float:
        """Of one treatment's proof: the treatments share the budget, since one of them is picked."""
        return self.alpha.promote / len(self.treatments)

    @property
    def rollback_alpha(self) -> float:
        """Of one guardrail's proof of harm: any of them is enough, so all of all treatments share the budget."""
        guardrails = sum(metric.role == "guardrail" for metric in self.metrics)
        return self.alpha.rollback / max(guardrails * len(self.treatments), 1)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Treatments in order, control last: the order of the bucket ranges."""
        return (*self.treatments, self.control)

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON: two specs with one digest decide alike.

        A field that came later is left out where it has its default, so that older specs keep their digest.
        """
        fields = self.model_dump(mode="json", exclude=None if self.shadow else {"shadow"})
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def seed_of_run(self, run: int) -> str:
        """The hash seed of a run: a restart shuffles the users anew."""
        seed = self.seed or self.key
        return seed if run <= 1 else f"{seed}#{run}"


class _NumbersLoader(yaml.SafeLoader):
    """YAML 1.2 where YAML 1.1 surprises people: `1e-3` is a number; `on`, `off`, `yes` and `no` are text."""


_REPLACED = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"}
_NumbersLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NumbersLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
_NumbersLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))


def load_spec(text: str) -> ExperimentSpec:
    """A specification from YAML or JSON text. Raises SpecError naming the first wrong field."""
    try:
        document = yaml.load(text, Loader=_NumbersLoader)  # noqa: S506 - a SafeLoader with other scalar rules
    except yaml.YAMLError as error:
        raise SpecError("spec", f"is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, Mapping):
        raise SpecError("spec", f"must be a mapping of fields, got {type(document).__name__}")
    return parse_spec(document)


def parse_spec(document: Mapping[str, Any]) -> ExperimentSpec:
    """A specification from a parsed document. Raises SpecError naming the first wrong field."""
    try:
        return ExperimentSpec.model_validate(document)
    except ValidationError as error:
        field, reason = field_errors(error)[0]
        raise SpecError(field, reason) from error


def field_errors(error: ValidationError) -> list[tuple[str, str]]:
    """(dotted field path, reason) of each problem. A whole-model check names its field in front of its sentence."""
    found = []
    for problem in error.errors(include_url=False, include_context=False):
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        reason = problem["msg"].removeprefix("Value error, ")
        head, colon, rest = reason.partition(": ")
        if problem["type"] == "value_error" and colon and " " not in head:
            path, reason = (f"{path}.{head}" if path else head), rest
        found.append((path or "spec", reason))
    return found
