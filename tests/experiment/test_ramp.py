"""The life of a run: what may follow what, and what can never happen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment.errors import IllegalTransitionError
from experiment.ramp import ALLOWED, MAX_FAILURES, Action, act, new_experiment, step
from experiment.spec import ExperimentSpec, parse_spec
from experiment.state import ExperimentRow, Reason, State, Verdict
from tests.experiment.factories import DOCUMENT, NOW, running_row

REASON = (Reason("test", "because", arm="fp8"),)

AFTER = {
    Action.START: State.RUNNING,
    Action.PAUSE: State.PAUSED,
    Action.RESUME: State.RUNNING,
    Action.ADVANCE: State.RUNNING,
    Action.PROMOTE: State.PROMOTED,
    Action.ROLLBACK: State.ROLLED_BACK,
    Action.STOP: State.STOPPED,
    Action.RESTART: State.READY,
}


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("state", State)
def test_every_action_in_every_state(spec: ExperimentSpec, state: State, action: Action) -> None:
    row = running_row(spec, state=state)
    if state in ALLOWED[action]:
        assert act(row, action, NOW).state is AFTER[action]
    else:
        with pytest.raises(IllegalTransitionError, match=f"cannot {action.value}"):
            act(row, action, NOW)


@pytest.mark.parametrize("state", [state for state in State if state not in {State.RUNNING, State.PAUSED}])
def test_what_does_not_run_is_not_judged(spec: ExperimentSpec, state: State) -> None:
    with pytest.raises(IllegalTransitionError):
        step(running_row(spec, state=state), Verdict.HOLD, REASON, NOW)


moves = st.one_of(st.sampled_from(list(Action)), st.sampled_from(list(Verdict)))


@given(st.lists(moves, max_size=40))
def test_no_sequence_of_moves_narrows_a_run_or_leaves_an_end_by_itself(sequence: list[Action | Verdict]) -> None:
    row = new_experiment(parse_spec(DOCUMENT), NOW)
    for move in sequence:
        try:
            after = act(row, move, NOW) if isinstance(move, Action) else step(row, move, REASON, NOW)
        except IllegalTransitionError:
            continue
        assert 0 <= after.step < len(after.spec.ramp.steps)
        if after.run == row.run:
            assert after.step >= row.step
            assert not row.state.is_final
        else:
            assert move is Action.RESTART
            assert after.run == row.run + 1
            assert (after.state, after.step, after.looks, after.latches) == (State.READY, 0, 0, {})
        row = after


def test_an_advance_widens_by_one_step_and_restarts_its_clock(spec: ExperimentSpec) -> None:
    row = running_row(spec, step=1)
    after = step(row, Verdict.ADVANCE, REASON, NOW)
    assert (after.step, after.step_started_at, after.started_at) == (2, NOW, row.started_at)


def test_nobody_can_advance_beyond_the_last_step(spec: ExperimentSpec) -> None:
    with pytest.raises(IllegalTransitionError):
        act(running_row(spec, step=len(spec.ramp.steps) - 1), Action.ADVANCE, NOW)


def test_a_promotion_names_the_winner(spec: ExperimentSpec) -> None:
    assert step(running_row(spec), Verdict.PROMOTE, REASON, NOW).promoted_variant == "fp8"
    assert act(running_row(spec), Action.PROMOTE, NOW).promoted_variant == "fp8"


def test_errors_in_a_row_pause_and_one_good_look_forgets_them(spec: ExperimentSpec) -> None:
    row = running_row(spec)
    for _ in range(MAX_FAILURES - 1):
        row = step(row, Verdict.ERROR, REASON, NOW)
        assert row.state is State.RUNNING
    assert step(row, Verdict.HOLD, REASON, NOW).failures == 0
    paused = step(row, Verdict.ERROR, REASON, NOW)
    assert paused.state is State.PAUSED
    assert paused.pause_reason


@pytest.mark.parametrize("verdict", [Verdict.HOLD, Verdict.NO_DATA])
def test_waiting_changes_nothing(spec: ExperimentSpec, verdict: Verdict) -> None:
    row: ExperimentRow = running_row(spec, step=2)
    assert step(row, verdict, REASON, NOW) == row
