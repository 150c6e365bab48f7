"""Peak memory of a child process that runs a few lines, measured by the child itself."""

import subprocess
import sys
from pathlib import Path

import pytest

# Not resource.getrusage: a child inherits its parent's ru_maxrss, and a large test process would
# hide all growth
PEAK = """
from pathlib import Path
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
"""


def run_and_measure(code: str, *arguments: Path) -> float:
    """The number that ``code`` prints; it may call ``peak()``, the most bytes so far."""
    if sys.platform != "linux":
        pytest.skip("peak memory is read from /proc, which only Linux has")
    command = [sys.executable, "-c", PEAK + code, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return float(child.stdout)
