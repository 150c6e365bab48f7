"""Compute the book's figures on this machine and print a table: book, here, within tolerance?

    python tools/book_figures.py              # all of them, about a minute
    python tools/book_figures.py 5.           # those whose name begins so

The figures and how they are computed stand in tests/test_book_figures.py. Some need the book's
real text: be online, or set LLMS_FROM_SCRATCH_MIRROR. Exit status: 1 if a figure differs.
"""

import argparse
import sys
import time
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch

from llms_from_scratch.data import fetch
from llms_from_scratch.data.http import DownloadError

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 34  # of a value in the table


def load_figures() -> list:
    """The table of the test suite: parameter sets (compute, value, tolerance) with names."""
    import importlib.util

    path = ROOT / "tests" / "test_book_figures.py"
    spec = importlib.util.spec_from_file_location("test_book_figures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FIGURES


def real_text() -> str | None:
    try:
        return fetch("the-verdict", allow_sample=False).read_text(encoding="utf-8")
    except DownloadError:
        return None


def is_within(got, value, tolerance: float) -> bool:
    if tolerance == 0:
        return got == value
    got, value = (torch.as_tensor(x, dtype=torch.float64) for x in (got, value))
    return torch.allclose(got, value, rtol=0, atol=tolerance)


def shown(value) -> str:
    """A value in one short line; numbers with five digits."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, float):
        text = f"{value:.5g}"
    elif isinstance(value, (list, tuple)):
        text = ", ".join(shown(part) for part in value)
    else:
        text = str(value)
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="beginnings of names (default: all figures)")
    args = parser.parse_args()
    figures = [
        figure
        for figure in load_figures()
        if not args.names or figure.id.startswith(tuple(args.names))
    ]
    if not figures:
        parser.error(f"no figure's name begins with {' or '.join(args.names)}")
    torch.set_num_threads(1)  # as in the tests: the order of additions decides on last digits
    text = real_text()
    print(f"torch {torch.__version__}, {'the real text' if text else 'without the real text'}\n")
    print("| figure | book | here | within tolerance |")
    print("|---|---|---|---|")
    started, counts = time.perf_counter(), {"yes": 0, "NO": 0, "not computed": 0}
    for figure in figures:
        compute, value, tolerance = figure.values
        if any(mark.name == "real_data" for mark in figure.marks) and text is None:
            got, verdict = "", "not computed: needs the real text"
        else:
            try:
                got = compute(text) if compute.__code__.co_argcount else compute()
                good = is_within(got, value, tolerance)
                verdict = "yes" if good else f"NO (allowed: ± {tolerance})"
            except DownloadError:
                got, verdict = "", "not computed: needs the book's data set"
        counts[verdict.partition(":")[0].partition(" (")[0]] += 1
        print(f"| {figure.id} | {shown(value)} | {shown(got)} | {verdict} |", flush=True)
    summary = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"\nWithin tolerance: {summary}; {time.perf_counter() - started:.0f} s")
    return 1 if counts["NO"] else 0


if __name__ == "__main__":
    sys.exit(main())
