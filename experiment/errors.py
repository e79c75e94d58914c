"""What can go wrong with an experiment. Domain outcomes (no data, SRM, inconclusive) are values, not exceptions."""


class ExperimentError(Exception):
    """Root of the package's errors."""


class SpecError(ExperimentError):
    """A specification is refused.

    `field` is a dotted path into the document (`metrics[1].margin`), `reason` says what is wrong with its value.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class InvalidUserError(ExperimentError):
    """A user id that cannot be bucketed: empty, blank or not text."""


class UnknownExperimentError(ExperimentError):
    """No experiment has this key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no experiment is called {key!r}")
        self.key = key


class ExperimentExistsError(ExperimentError):
    """The key is taken. Keys are never reused: a restart makes a new run instead."""

    def __init__(self, key: str) -> None:
        super().__init__(f"an experiment called {key!r} exists; restart it for a new run, or choose another key")
        self.key = key


class IllegalTransitionError(ExperimentError):
    """The action is not possible in this state."""

    def __init__(self, key: str, state: str, action: str, reason: str = "") -> None:
        super().__init__(f"cannot {action} {key!r} while it is {state}" + (f": {reason}" if reason else ""))
        self.key = key
        self.state = state
        self.action = action


class VersionConflictError(ExperimentError):
    """Somebody else changed the experiment since it was read."""

    def __init__(self, key: str, expected: int) -> None:
        super().__init__(f"{key!r} is no longer at version {expected}; read it again")
        self.key = key
        self.expected = expected


class StoreUnavailableError(ExperimentError):
    """Redis or the SQL store does not answer. Callers degrade; they never guess."""
