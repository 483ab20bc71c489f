"""Everything that pyheadkv raises on purpose.

Each message is one line that names the value and the limit, fit to be shown to a user as it is.
Anything else that escapes from the package is a bug.
"""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The words of an exception as one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class HeadKVError(Exception):
    """Base of all errors that pyheadkv raises on purpose; the text is one line for a user.

    >>> try:
    ...     Budget.parse("0%")
    ... except HeadKVError as error:
    ...     print(error)
    budget 0% must be above 0
    """


class LibraryError(HeadKVError):
    """The native library is missing, of another version, or llama_cpp was imported before it."""


class ModelError(HeadKVError):
    """A model that cannot be read, or whose cache cannot be compressed."""


class BudgetError(HeadKVError):
    """A budget that cannot be read, or is below what must always be kept."""


class PolicyError(HeadKVError):
    """An unknown policy, allocator or scorer, or a parameter out of range."""


class ProfileError(HeadKVError):
    """A profile (measured head scores) that is missing, damaged, or made for another model."""


class CalibrationError(HeadKVError):
    """Head scores that cannot be measured on a model, or not well enough to be written."""


class EvaluationError(HeadKVError):
    """Cases that cannot be read or measured, or results that cannot be written."""


class BenchError(HeadKVError):
    """Speed or memory that cannot be measured, or a result that cannot be written."""


class ExportError(HeadKVError):
    """A model file that cannot be written: it exists, there is no room, or the model carries no profile."""


class CapsuleError(HeadKVError):
    """A capsule (saved conversation) that cannot be read or written, is damaged, or does not fit this model."""


class UsageError(HeadKVError):
    """An option or argument that cannot be understood."""


class NativeError(HeadKVError):
    """A native call failed.

    Parameters
    ----------
    message
        the library's own one-line explanation
    status
        ``enum headkv_status`` of native/headkv.h, negative
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
