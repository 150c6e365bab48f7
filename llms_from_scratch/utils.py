"""A notebook as a module, and a file from an address: helpers for readers' own scripts and tests.

A notebook mixes definitions with the cells that try them out, which can take minutes. To use the
definitions elsewhere, take only those::

    chapter = import_definitions_from_notebook("ch03/01_main-chapter-code/ch03.ipynb")
    chapter.CausalAttention(...)
"""

import ast
import contextlib
import json
import linecache
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from llms_from_scratch.data import ASSETS, DownloadError, fetch
from llms_from_scratch.data.archive import check_member_name
from llms_from_scratch.data.files import atomic_write, is_whole
from llms_from_scratch.data.formats import check_format
from llms_from_scratch.data.http import download, is_offline
from llms_from_scratch.tokenizer import encoder_json, vocab_bpe

IMPORTS = ast.Import | ast.ImportFrom
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# What IPython understands and Python does not: %magic, !command, ?help, help?, files = !ls
IPYTHON_LINE = re.compile(r"(\s*)([%!?]|[\w, ]+=\s*[%!]|[\w.]+\?+\s*$)")
PYTHON_CELL_MAGICS = ("%%time", "%%timeit", "%%capture", "%%prun")  # the rest of the cell is Python


def import_definitions_from_notebook(
    nb_dir_or_path: str | Path,
    notebook_name: str | None = None,
    *,
    extra_globals: Mapping[str, Any] | None = None,
) -> ModuleType:
    """The functions and classes of a notebook as a module; its other statements are not run.

    Executed are the imports and the definitions at the top level of its cells, in their order;
    ``torch`` and ``nn`` are always there. Imports find the files beside the notebook, such as its
    ``previous_chapters.py``. Constants are not kept: what a definition needs of them can be given
    as ``extra_globals``. The model is called ``model`` in any function ``load_weights_into_...``,
    whatever the notebook calls its first parameter.

    The notebook is ``nb_dir_or_path``, or ``notebook_name`` in that folder. The module is named
    after it, with "_" for spaces and hyphens. Raises ``FileNotFoundError`` if there is no such
    file, and ``ValueError`` for a file that is not a notebook, a cell that is not Python, and a
    definition that cannot be made without a constant.
    """
    path = Path(nb_dir_or_path, notebook_name or "")
    if not path.is_file():
        raise FileNotFoundError(f"there is no notebook {path}")
    cells = [(number, _parse(path, number, source)) for number, source in _code_cells(path)]
    module = ModuleType(re.sub(r"[\s-]", "_", path.stem))
    module.__file__ = str(path)
    exec("import torch\nimport torch.nn as nn", module.__dict__)
    module.__dict__.update(extra_globals or {})
    with _importing_beside(path.parent.resolve(), module):
        for number, tree in cells:
            wanted = [node for node in tree.body if isinstance(node, IMPORTS | DEFINITIONS)]
            _execute(path, number, [_with_model_first(node) for node in wanted], module)
    return module


def _code_cells(path: Path) -> Iterator[tuple[int, str]]:
    """Number and source of each code cell; a notebook is a JSON file."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for number, cell in enumerate(cells):
            if cell["cell_type"] == "code":
                yield number, "".join(cell["source"])  # a string, or a list of lines
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a notebook of version 4: {error!r:.200}") from None


def _parse(path: Path, number: int, source: str) -> ast.Module:
    """The syntax tree of a cell, with ``pass`` for lines that only IPython understands."""
    if source.startswith("%%") and not source.startswith(PYTHON_CELL_MAGICS):
        return ast.Module([], type_ignores=[])  # another language
    file_name = f"<{path.name}, cell {number}>"
    lines = source.split("\n")
    linecache.cache[file_name] = (len(source), None, source.splitlines(True), file_name)
    while True:
        try:
            return ast.parse("\n".join(lines), file_name)
        except SyntaxError as error:
            index = (error.lineno or 1) - 1
            for_ipython = IPYTHON_LINE.match(lines[index]) if index < len(lines) else None
            if not for_ipython:
                raise ValueError(
                    f"{path}: cell {number} is not Python (line {error.lineno}: {error.msg})"
                ) from None
            lines[index] = f"{for_ipython[1]}pass"


def _execute(path: Path, number: int, nodes: list[ast.stmt], module: ModuleType) -> None:
    code = compile(ast.Module(nodes, type_ignores=[]), f"<{path.name}, cell {number}>", "exec")
    try:
        exec(code, module.__dict__)
    except NameError as error:
        raise ValueError(
            f"{path}: a definition in cell {number} needs a value that the notebook computes "
            f"({error}): give it as extra_globals={{{error.name!r}: ...}}"
        ) from error


def _with_model_first(node: ast.stmt) -> ast.stmt:
    """A ``load_weights_into_...`` whose first parameter is ``model``, in its body too."""
    if not isinstance(node, ast.FunctionDef) or not node.name.startswith("load_weights_into_"):
        return node
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    names |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    if not node.args.args or "model" in names:
        return node
    old = node.args.args[0].arg
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and inner.id == old:
            inner.id = "model"
        elif isinstance(inner, ast.arg) and inner.arg == old:
            inner.arg = "model"
    return node


class _FinderBeside:
    """Finds a module in one folder before Python looks anywhere else."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, [self.folder]) if path is None else None


@contextlib.contextmanager
def _importing_beside(folder: Path, module: ModuleType) -> Iterator[None]:
    """While a notebook is executed, Python files beside it can be imported, as in Jupyter.

    Afterwards nothing of it remains: each chapter has its own ``previous_chapters``.
    """
    own = {path.stem for path in folder.glob("*.py")} | {module.__name__}
    before = {name: sys.modules.pop(name) for name in own & sys.modules.keys()}
    finder = _FinderBeside(folder)
    sys.modules[module.__name__] = module  # dataclasses look for it there
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in own:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def download_file(url: str, out_dir: str | Path = ".") -> Path:
    """Download a file into a folder, unless it is there, and return its path.

    Its name is the last part of the address. A file that the project knows is checked by its hash
    and may come from the mirror. Raises ``DownloadError``, a ``RuntimeError``, if it cannot be had,
    and ``ValueError`` for an address without a file name.
    """
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if not name:
        raise ValueError(f"the address {url!r} ends without a file name")
    check_member_name(name)
    return download_to(url, Path(out_dir) / name)


def download_file_if_absent(url: str, filename: str, search_dirs: Iterable[str | Path]) -> Path:
    """The path of a file: where one of the folders has it, or downloaded to the first folder.

    If it cannot be downloaded, the reason is printed, and the path is where it should be put.
    """
    paths = [Path(folder) / filename for folder in search_dirs]
    if not paths:
        raise ValueError("search_dirs is empty: name a folder to download to")
    for path in paths:
        if path.is_file():
            print(f"{filename}: found")
            return path
    try:
        download_to(url, paths[0])
        print(f"{filename}: fetched")
    except DownloadError as error:
        print(f"{filename}: could not be fetched\n{error}")
    return paths[0]


def download_to(url: str, path: Path) -> Path:
    """Download a file to ``path`` unless a whole one is there; errors as in ``download_file``."""
    if is_whole(path, partial(check_format, file_name=path.name)):
        return path
    known = next((asset.name for asset in ASSETS.values() if url in asset.urls), None)
    make = {"gpt2-vocab/vocab.bpe": vocab_bpe, "gpt2-vocab/encoder.json": encoder_json}.get(known)
    if make:  # comes with the package
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(make())
        return path
    if known:
        return fetch(known, allow_sample=False, target=path)
    try:
        if is_offline():
            raise DownloadError(f"LLMS_FROM_SCRATCH_OFFLINE is set, so {url} was not downloaded")
        return download([url], path, check=lambda downloaded: None)
    except DownloadError as error:
        raise DownloadError(f"{error}\nTo provide it by hand, put the file at {path}.") from None
