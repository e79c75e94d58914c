"""What can go wrong in this room, each with a message that names the layer or the field and the reason."""

from __future__ import annotations


class QuantError(Exception):
    """Something that cannot be quantised, or cannot be run quantised."""


class RecipeError(QuantError):
    """A recipe that is unknown, inconsistent, or fits nothing in the model."""


class NonFiniteError(QuantError):
    """A weight or an activation that holds NaN or infinity, so that a max-abs scale would mean nothing."""


class DeviceError(QuantError):
    """A device that lacks what the recipe asks for."""
