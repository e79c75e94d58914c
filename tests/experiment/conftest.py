"""Specifications and rows for the tests of the decision core."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from experiment.spec import ExperimentSpec, parse_spec
from experiment.state import ExperimentRow
from tests.experiment.factories import DOCUMENT, running_row


@pytest.fixture
def document() -> dict[str, Any]:
    """A specification as a person would write it; change it at will."""
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def spec(document: dict[str, Any]) -> ExperimentSpec:
    return parse_spec(document)


@pytest.fixture
def running(spec: ExperimentSpec) -> Callable[..., ExperimentRow]:
    """A run that began long ago, at any step."""
    return lambda **changes: running_row(spec, **changes)
