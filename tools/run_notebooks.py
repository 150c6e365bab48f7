"""Execute notebooks from top to bottom and, with --write, keep their outputs.

    python tools/run_notebooks.py                          # all notebooks, outputs are dropped
    python tools/run_notebooks.py --write ch03             # the notebooks below ch03, outputs kept

Committed outputs come from the book's real data: set LLMS_FROM_SCRATCH_MIRROR, or be online.
"""

import argparse
import os
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks or folders (default: all)")
    parser.add_argument("--write", action="store_true", help="write the outputs to the notebooks")
    parser.add_argument("--timeout", type=int, default=600, help="seconds per cell (default: 600)")
    args = parser.parse_args()
    wanted = [path.resolve() for path in args.paths] or [ROOT]
    notebooks = [p for p in all_notebooks() if any(p.is_relative_to(w) for w in wanted)]
    for path in wanted:
        if not any(notebook.is_relative_to(path) for notebook in notebooks):
            parser.error(f"{path} is no notebook of the repository, nor a folder with one")

    failures = 0
    bar = tqdm(notebooks, unit="notebook")
    for path in bar:
        bar.set_description(path.stem)
        started = time.perf_counter()
        try:
            notebook = execute(path, args.timeout)
        except CellExecutionError as error:
            failures += 1
            bar.write(f"FAILED  {path.relative_to(ROOT)}\n{error}")
            continue
        bar.write(f"{time.perf_counter() - started:6.1f} s  {path.relative_to(ROOT)}")
        if args.write:
            nbformat.write(notebook, path)
    return 1 if failures else 0


def execute(path: Path, timeout: int = 600) -> nbformat.NotebookNode:
    """Run a notebook in its own folder and return it with outputs, free of machine traces."""
    notebook = nbformat.read(path, as_version=4)
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
