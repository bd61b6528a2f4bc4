"""Errors that a person caused and a person can mend: each says what was got, what was wanted and what to do."""


class HoldfastError(Exception):
    """Base of every error holdfast raises on purpose; the command line prints its one line and exits with `code`."""

    code = 2


class InputError(HoldfastError, ValueError):
    """A value at a public door is not what the door takes."""


class UnsupportedError(HoldfastError, NotImplementedError):
    """The request is well formed, but this model, threat or operator is beyond what the method covers."""


class TrustError(InputError):
    """Reading the file could run code, and the user has not said that it may (`--trust`)."""


class ResumeError(InputError):
    """The run folder holds evidence of another model, other data or other settings."""


class StorageError(HoldfastError, OSError):
    """The run folder cannot be written or read (no space, no permission, damaged file)."""


class MissingDependency(HoldfastError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> "MissingDependency":
        return cls(f"{purpose} needs the package '{package}': pip install 'holdfast[{extra}]'")


class MissingData(InputError):
    """A check or benchmark needs a data set that is not on this machine."""
