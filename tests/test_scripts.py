"""The tests' shortcut for scripts: what a person sees who types ``python script.py``."""

import os
import subprocess
import sys

import pytest
from scripts import run_script

SHOW_ALL = """
import atexit, os, sys
from pathlib import Path

import beside

atexit.register(print, "at the end")
print(sys.argv, Path.cwd(), os.environ["COLOUR"], __name__, beside.NAME, "pytest" in sys.modules)
print("höher", file=sys.stderr)
print(sys.stdin.read(), end="without a new line")
"""
ENDINGS = {
    "by itself": "",
    "with a number": "sys.exit(3)",
    "with a text": "sys.exit('no such file')",
    "with an error": "raise ValueError('ten')",
    "without cleaning up": "sys.stdout.flush(); os._exit(4)",
    "by a signal": "sys.stdout.flush(); os.kill(os.getpid(), 15)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_script_prints_and_ends_as_in_a_process_that_is_started_anew(ending, tmp_path):
    script, folder = tmp_path / "code/script.py", tmp_path / "elsewhere"
    script.parent.mkdir()
    folder.mkdir()
    script.write_text(SHOW_ALL + ENDINGS[ending], encoding="utf-8")
    (script.parent / "beside.py").write_text("NAME = __name__")
    command = ["../code/script.py", "--epochs", "2"]
    environment = {"COLOUR": "red", "PYTHONIOENCODING": "utf-8"}
    done = run_script(*command[:2], 2, cwd=folder, env=environment)
    expected = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
    )
    assert "beside" in expected.stdout
    assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)
    assert done.stderr.splitlines()[0] == "höher"
    assert done.stderr.splitlines()[-1] == expected.stderr.splitlines()[-1]


def test_a_script_that_takes_too_long_is_ended(tmp_path):
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired, match="slow.py"):
        run_script("slow.py", cwd=tmp_path, timeout=3)


def test_scripts_leave_nothing_in_one_another(tmp_path):
    (tmp_path / "writes.py").write_text(
        "import os, torch\nos.environ['LEFT'] = '1'\ntorch.left = 1\ntorch.manual_seed(5)"
    )
    (tmp_path / "reads.py").write_text(
        "import os, torch\n"
        "print('LEFT' in os.environ, hasattr(torch, 'left'), torch.initial_seed() == 5)"
    )
    assert run_script("writes.py", cwd=tmp_path).returncode == 0
    assert run_script("reads.py", cwd=tmp_path).stdout == "False False False\n"
