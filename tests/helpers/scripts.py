"""Run scripts as a person types them, without importing PyTorch anew for each of them.

Each script runs in a process of its own, forked from one that has imported the slow libraries and
done nothing else ("forkserver" of ``multiprocessing``). It is a new one for a help text, which must
come without any library, and where forking is not safe (macOS) or not possible (Windows).
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = ["torch", "matplotlib.pyplot", "pandas", "tiktoken", "tqdm", "llms_from_scratch.ch07"]
OF_TESTS = {str(ROOT / "tools"), str(ROOT / "tests" / "helpers"), ""}  # not on a reader's path


def run_script(
    script, *arguments, cwd, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess:
    """``python script arguments`` in the folder ``cwd``, with ``env`` on top of the environment.

    Returns exit code, stdout and stderr as ``subprocess.run(..., text=True)`` does.
    """
    command = [str(part) for part in (script, *arguments)]
    if "--help" in command or sys.platform != "linux":
        return subprocess.run(
            [sys.executable, *command],
            cwd=cwd,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
        )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        texts = [Path(folder, name) for name in ("stdout", "stderr")]
        task = (command, os.fspath(cwd), dict(os.environ) | (env or {}), [*map(str, texts)])
        process = context.Process(target=_run, args=task)
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        code = process.exitcode
        return subprocess.CompletedProcess(command, code, *(t.read_text("utf-8") for t in texts))


def _run(command: list[str], folder: str, environment: dict[str, str], texts: list[str]) -> None:
    """In the new process: take the place of a fresh Python, and run the script."""
    for number, (text, stream) in enumerate(zip(texts, (sys.stdout, sys.stderr), strict=True), 1):
        os.dup2(os.open(text, os.O_WRONLY | os.O_CREAT), number)
        stream.reconfigure(encoding="utf-8")
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = command
    script = str(Path(command[0]).resolve().parent)
    sys.path[:] = [script, *(path for path in sys.path if path not in OF_TESTS)]
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing leaves them out
