"""Execute notebooks from top to bottom and, with --write, keep their outputs.

    python tools/run_notebooks.py                          # all notebooks, outputs are dropped
    python tools/run_notebooks.py --write ch03             # the notebooks below ch03, outputs kept
    python tools/run_notebooks.py --quick ch06             # the short form that the tests run

Committed outputs come from the book's real data: set LLMS_FROM_SCRATCH_MIRROR, or be online.

A notebook that takes longer than 15 seconds has a cell tagged ``parameters`` with the line
``QUICK = False``. With --quick it runs with ``QUICK = True`` instead, and what then differs is
tagged as varying. With --write, the time that a notebook took is written into its first cell, where
that cell has a sentence "Running time: ... on two CPU cores".
"""

import argparse
import math
import os
import re
import sys
import time
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from repository import ROOT
from sync_notebooks import all_notebooks
from tqdm import tqdm

RUNNING_TIME = re.compile(r"Running time: [^.\n]+?(?= on two CPU cores)")
IN_FULL, IN_SHORT = "QUICK = False", "QUICK = True"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks or folders (default: all)")
    parser.add_argument("--write", action="store_true", help="write the outputs to the notebooks")
    parser.add_argument("--quick", action="store_true", help="run with QUICK = True")
    parser.add_argument("--timeout", type=int, default=600, help="seconds per cell (default: 600)")
    args = parser.parse_args()
    if args.quick and args.write:
        parser.error("--write keeps the outputs of a whole run: it goes without --quick")
    wanted = [path.resolve() for path in args.paths] or [ROOT]
    notebooks = [p for p in all_notebooks() if any(p.is_relative_to(w) for w in wanted)]
    for path in wanted:
        if not any(notebook.is_relative_to(path) for notebook in notebooks):
            parser.error(f"{path} is no notebook of the repository, nor a folder with one")

    failures = 0
    bar = tqdm(notebooks, unit="notebook")
    for path in bar:
        bar.set_description(path.stem)
        started = clocks()
        try:
            notebook = execute(path, args.timeout, args.quick)
        except CellExecutionError as error:
            failures += 1
            bar.write(f"FAILED  {path.relative_to(ROOT)}\n{error}")
            continue
        wall, cpu = (now - then for now, then in zip(clocks(), started, strict=True))
        bar.write(f"{wall:6.1f} s, {cpu:6.1f} s of CPU  {path.relative_to(ROOT)}")
        if args.write:
            # On a busy machine a notebook waits: that is not its own time. (Windows counts 0.)
            write_running_time(notebook, min(wall, cpu or wall))
            nbformat.write(notebook, path)
    return 1 if failures else 0


def clocks() -> tuple[float, float]:
    """Seconds that have passed, and CPU seconds that finished processes of ours have used."""
    used = os.times()
    return time.perf_counter(), used.children_user + used.children_system


def in_words(seconds: float) -> str:
    """A time as a reader wants it: rounded up a little.

    >>> [in_words(seconds) for seconds in (3, 14, 42, 100, 250)]
    ['a few seconds', 'about 20 seconds', 'about 50 seconds', 'about 2 minutes', 'about 5 minutes']
    """
    if seconds < 10:
        return "a few seconds"
    if seconds <= 60:
        return f"about {math.ceil(seconds / 10) * 10} seconds"
    return f"about {max(2, math.ceil(seconds / 60))} minutes"


def write_running_time(notebook: nbformat.NotebookNode, seconds: float) -> None:
    """Put the measured time into the sentence of the first cell that names it, if there is one."""
    first = notebook.cells[0]
    first.source = RUNNING_TIME.sub(f"Running time: {in_words(seconds)}", first.source)


def set_quick(notebook: nbformat.NotebookNode, old: str, new: str) -> None:
    """Change the line ``QUICK = ...`` of the cells tagged ``parameters``."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace(old, new)


def execute(path: Path, timeout: int = 600, quick: bool = False) -> nbformat.NotebookNode:
    """Run a notebook in its own folder and return it with outputs, free of machine traces."""
    notebook = nbformat.read(path, as_version=4)
    if quick:
        set_quick(notebook, IN_FULL, IN_SHORT)
    environment = os.environ | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # no debugger's warning
    # Threads that wait sleep: several notebooks at a time would slow each other tenfold otherwise
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # progress bars as text
    environment.pop("MPLBACKEND", None)  # the kernel shows plots in the notebook
    client = NotebookClient(
        notebook,
        timeout=timeout,
        coalesce_streams=True,  # one output per stream, however the kernel flushed it
        kernel_name="python3",
        resources={"metadata": {"path": path.parent}},
    )
    client.execute(env=environment)
    if quick:
        set_quick(notebook, IN_SHORT, IN_FULL)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        for key in ("execution", "lines_to_next_cell"):  # time stamps; a trace of jupytext
            cell.metadata.pop(key, None)
    return notebook


if __name__ == "__main__":
    sys.exit(main())
