"""`python -m zeroshift` and the `zeroshift` command."""

from __future__ import annotations

import sys


def main() -> None:
    """The exit code of the command line, given to the shell."""
    try:
        from zeroshift.app.cli import main as run

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        # Pressed while the libraries load.
        sys.stderr.write("stopped.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
