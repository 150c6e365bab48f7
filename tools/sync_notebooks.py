"""Fill the cells of notebooks that show a definition of the package with the package's source.

    python tools/sync_notebooks.py            # rewrite such cells in all notebooks
    python tools/sync_notebooks.py --check    # change nothing, exit with 1 if a cell differs

A definition is written once, in ``llms_from_scratch``. A notebook cell that shows it carries its
dotted name in the cell's metadata, ``"definition": "llms_from_scratch.ch03.MultiHeadAttention"``,
or several names separated by spaces. A cell that defines a name of the package by hand is an error:
that would be a second home.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import nbformat
from repository import ROOT, tracked_files

from llms_from_scratch.app.source_index import package, public_definitions

TEACHING = re.compile(r"llms_from_scratch\.(ch\d\d|appendix_\w)$")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of the repository")
    parser.add_argument("--check", action="store_true", help="report differences, write nothing")
    args = parser.parse_args()
    problems = []
    for path in args.notebooks or all_notebooks():
        problems += sync_notebook(path.resolve(), write=not args.check)
    print("\n".join(problems) or "all definition cells show the package's source")
    return 1 if problems else 0


def all_notebooks() -> list[Path]:
    """The repository's notebooks, those that git does not track yet included."""
    return tracked_files("*.ipynb")


def sync_notebook(path: Path, write: bool) -> list[str]:
    """Update one notebook's definition cells; return a line for each remaining problem."""
    notebook = nbformat.read(path, as_version=4)
    problems, changed = [], False
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        where = f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}: cell {number}"
        names = cell.metadata.get("definition", "").split()
        if not names:
            problems += [f"{where}: {problem}" for problem in second_homes(cell.source)]
            continue
        try:
            wanted = "\n\n\n".join(definition_source(name) for name in names)
        except KeyError as error:
            problems.append(f"{where}: the package has no {error.args[0]}")
            continue
        if cell.source != wanted:
            if write:
                cell.source, changed = wanted, True
            else:
                problems.append(f"{where}: {' '.join(names)} differs from the package's source")
    if changed:
        nbformat.write(notebook, path)
    return problems


def definition_source(dotted_name: str) -> str:
    """Source of ``package.module.Name``; ``KeyError`` with the name if there is none."""
    module, _, name = dotted_name.rpartition(".")
    try:
        return package()[module].definitions[name].source
    except KeyError:
        raise KeyError(dotted_name) from None


def second_homes(source: str) -> list[str]:
    """Classes and functions in a cell that the package already defines."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with a magic command
        return []
    defined = [n.name for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    homes = {d.name: d.dotted_name for d in public_definitions() if TEACHING.match(d.module)}
    return [
        f"{name} is {homes[name]}: name that in the cell's metadata, or choose another name"
        for name in defined
        if name in homes
    ]


if __name__ == "__main__":
    sys.exit(main())
