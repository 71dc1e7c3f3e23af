"""Exceptions, one per kind of refusal.

Every one is an :class:`AttentionError`; most are also the built-in exception that a Python programmer
would expect, so that ``except ValueError`` works too.
"""

from __future__ import annotations


class AttentionError(Exception):
    """A call that was refused or failed. The output is as it was before the call."""


class InvalidArgumentError(AttentionError, ValueError):
    """A count, size, stride or option is outside its range by itself."""


class ShapeMismatchError(AttentionError, ValueError):
    """Two arguments do not fit each other."""


class UnsupportedElementTypeError(AttentionError, TypeError):
    """An element type that this argument cannot have."""


class UnsupportedError(AttentionError, NotImplementedError):
    """A combination that is not computed here."""


class NonFiniteInputError(AttentionError, ValueError):
    """A query, key or value is NaN or infinite."""


class ValueOutOfRangeError(AttentionError, ValueError):
    """A finite input is so large that float32 arithmetic on it would overflow."""


class OverlappingOutputError(AttentionError, ValueError):
    """The output shares memory with an input or with itself."""


class UnavailableError(AttentionError, RuntimeError):
    """A device or an instruction set that this machine does not have."""


class OutOfMemoryError(AttentionError, MemoryError):
    """Memory for the call could not be had."""


class DeviceFailureError(AttentionError, RuntimeError):
    """A device or its driver reported a failure."""


class OutOfPagesError(AttentionError, RuntimeError):
    """A cache is full."""


class FileFailureError(AttentionError, OSError):
    """A file cannot be opened, read or written."""


class MalformedFileError(AttentionError, ValueError):
    """A file is damaged, of another kind or version, or has sizes that cannot be read."""


class InternalError(AttentionError, RuntimeError):
    """An error of the library itself; please report it."""


class GradientError(AttentionError, RuntimeError):
    """A tensor that requires gradients, while they are recorded: there is no backward pass."""


class CopyWarning(UserWarning):
    """An operand was copied because of its layout; the message says which one and why."""


def require_instance(value: object, kind: type, name: str) -> None:
    """Refuses an argument that is no object of a class of this package.

    Raises:
        InvalidArgumentError: it is something else.
    """
    if not isinstance(value, kind):
        raise InvalidArgumentError(
            f"{name} is a {type(value).__name__}; it must be a {kind.__name__}"
        )
