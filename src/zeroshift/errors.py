"""The few errors a person may meet: each message says what happened, which value, and what to try."""


class ZeroshiftError(Exception):
    """Parent of every error raised on purpose; its message is meant for the person at the terminal."""


class InputError(ZeroshiftError, ValueError):
    """The request cannot be carried out as asked; nothing was started or written. Exit code 2."""


class MissingExtra(InputError):
    """An optional part of the package is not installed; the message names the extra that brings it."""


class RunError(ZeroshiftError, RuntimeError):
    """Work that had begun failed; the last complete checkpoint is intact. Exit code 1."""
