"""`python -m zeroshift` and the `zeroshift` command."""

from __future__ import annotations

import sys


def main() -> None:
    """The exit code of the command line, given to the shell."""
    from .cli import main as run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
