"""What can go wrong while serving. Each carries the stable code that clients see."""


class ServingError(Exception):
    """Root of the package's errors."""

    code = "internal"


class InvalidRequestError(ServingError):
    """A request is refused at the edge: `field` is a dotted path into its body, `reason` says what is wrong."""

    code = "invalid_request"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class UnknownRequestError(ServingError):
    """A request id that this service never issued for this user."""

    code = "invalid_request"


class SpoolFullError(ServingError):
    """The event spool is at its limit: nothing more is acknowledged until the SQL store catches up."""

    code = "overloaded"


class VariantError(ServingError):
    """A variant did not answer: unreachable, failing, overloaded or too slow. `kind` is a short word for the log.

    One that befell a whole call is the error of each of its questions; `counted` once a breaker has heard of it.
    """

    code = "unavailable"

    def __init__(self, variant: str, kind: str, detail: str = "") -> None:
        super().__init__(f"variant {variant!r}: {kind}" + (f": {detail}" if detail else ""))
        self.variant = variant
        self.kind = kind
        self.counted = False


class NoAnswerError(ServingError):
    """Neither the arm nor control answered."""

    code = "unavailable"


class ConfigurationError(ServingError):
    """A setting or a file of the service is wrong; the sentence names it."""

    code = "invalid_request"
