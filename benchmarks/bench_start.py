"""Seconds until the package is imported and until the help is shown, in fresh processes, warm file cache.

Best of five: what the program costs, not what else the machine does. The last line is JSON.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time

LIMITS = {"import zeroshift": 0.5, "zeroshift --help": 1.5, "zeroshift adapt --help": 1.5}
COMMANDS = {
    "import zeroshift": ["-c", "import zeroshift"],
    "zeroshift --help": ["-m", "zeroshift", "--help"],
    "zeroshift adapt --help": ["-m", "zeroshift", "adapt", "--help"],
}


def seconds(words: list[str]) -> float:
    """Best wall-clock time of five runs."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> int:
    """0 where every limit is kept, else 1."""
    measured = {name: round(seconds(words), 3) for name, words in COMMANDS.items()}
    for name, value in measured.items():
        print(f"{name:24} {value:.2f} s (limit {LIMITS[name]:.1f} s)")
    print(
        json.dumps(
            {
                "benchmark": "start",
                "python": platform.python_version(),
                "machine": platform.machine(),
                **measured,
            }
        )
    )
    return int(any(value > LIMITS[name] for name, value in measured.items()))


if __name__ == "__main__":
    sys.exit(main())
