"""What can go wrong in a statistic: only arguments that no data could produce. Too little data is a value (None)."""


class StatsError(ValueError):
    """An argument is impossible. `field` names it, `reason` says why it is refused."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
