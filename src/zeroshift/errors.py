"""The few errors a person may meet: each message says what happened, which value, and what to try."""


class ZeroshiftError(Exception):
    """Parent of every error raised on purpose; its message is meant for the person at the terminal."""


class InputError(ZeroshiftError, ValueError):
    """The request cannot be carried out as asked; nothing was started or written. Exit code 2."""


class MissingExtra(InputError):
    """An optional part of the package is not installed; the message names the extra that brings it."""


class RunError(ZeroshiftError, RuntimeError):
    """Work that had begun failed; the last complete checkpoint is intact. Exit code 1."""


def printable(text: object, limit: int = 100) -> str:
    """Text of a file as a terminal may show it: control characters escaped, at most `limit` characters."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[:limit] + "..."
