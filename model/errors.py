"""What can go wrong in this room, each with a message that names the field and the reason."""

from __future__ import annotations


class ModelError(Exception):
    """A request or a configuration that the model cannot serve."""


class DataError(ModelError):
    """Interactions that cannot be fetched, read or split."""


class CheckpointError(ModelError):
    """A checkpoint that is damaged, truncated, foreign or of another shape."""
