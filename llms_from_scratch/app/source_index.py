"""The package's own source as an index: every definition, with its text and its module.

Nothing is imported for it; modules are read as text and syntax trees. ``copying`` and the tool that
fills the notebooks' definition cells are built on it.
"""

import ast
import difflib
import functools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "llms_from_scratch"
ROOT = Path(__file__).parent.parent
NOT_FOR_READERS = ("app.cli", "app.copying", "app.serve", "app.source_index", "serving")


class UnknownNameError(ValueError):
    """A name is not in the package, or stands for several definitions."""


@dataclass(frozen=True)
class Definition:
    """A class, function or constant at the top level of a module."""

    module: str
    name: str
    source: str
    line: int

    @property
    def dotted_name(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def is_constant(self) -> bool:
        return isinstance(ast.parse(self.source).body[0], ast.Assign | ast.AnnAssign)

    @property
    def summary(self) -> str:
        """The first line of the docstring, else of the code."""
        node = ast.parse(self.source).body[0]
        docstring = None if self.is_constant else ast.get_docstring(node)
        line = (docstring or ast.unparse(node)).split("\n")[0]
        return textwrap.shorten(line, 90, placeholder=" ...")


@dataclass(frozen=True)
class Import:
    """``from module import name as alias``, or ``import module as alias`` without a name."""

    module: str
    name: str | None
    alias: str

    @property
    def root(self) -> str:
        return self.module.split(".")[0]

    @property
    def clause(self) -> ast.alias:
        imported = self.name or self.module
        return ast.alias(imported, None if self.alias in (imported, self.root) else self.alias)


class Module:
    """What a module of the package defines and imports, by the names it uses for them."""

    def __init__(self, dotted_name: str, path: Path):
        self.source = path.read_text(encoding="utf-8")
        self.lines = self.source.splitlines()
        self.definitions: dict[str, Definition] = {}
        self.imports: dict[str, Import] = {}
        for node in ast.parse(self.source).body:
            for name in _names_bound_by(node):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    continue
                source = self._source_of(node)
                self.definitions[name] = Definition(dotted_name, name, source, node.lineno)
            self.imports |= {found.alias: found for found in imports_of(node)}

    def _source_of(self, node: ast.stmt) -> str:
        """The lines of a statement, with its decorators and the comments right above it."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        while first > 1 and self.lines[first - 2].startswith("#"):
            first -= 1
        return "\n".join(self.lines[first - 1 : node.end_lineno])


def _names_bound_by(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if name != "__all__"]


def imports_of(node: ast.stmt) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, None, alias.asname or alias.name.split(".")[0])
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield Import(node.module, alias.name, alias.asname or alias.name)


def _place(path: Path) -> tuple:
    """Chapters first, then appendices, single subjects, and what lies in folders."""
    parts = path.relative_to(ROOT).parts
    is_program = parts[0] == "app"
    is_chapter, is_appendix = parts[0].startswith("ch0"), parts[0].startswith("appendix_")
    return is_program, len(parts) > 1, not is_chapter, not is_appendix, parts


@functools.cache
def package() -> dict[str, Module]:
    """All modules with definitions for readers, chapters first."""
    modules = {}
    for path in sorted(ROOT.rglob("*.py"), key=_place):
        parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        room = name.removeprefix(PACKAGE + ".")
        if not f"{room}.".startswith(tuple(f"{hidden}." for hidden in NOT_FOR_READERS)):
            modules[name] = Module(name, path)
    return modules


def public_definitions() -> list[Definition]:
    """Every definition with a public name, in the order of the modules and their lines."""
    return [
        definition
        for module in package().values()
        for definition in module.definitions.values()
        if not definition.name.startswith("_")
    ]


def listed_definitions() -> list[tuple[str, Definition]]:
    """Classes and functions for readers, each with the shortest name by which it is found.

    Parts of the programs in ``app`` are found, but not listed.
    """
    listed = []
    for definition in public_definitions():
        room = definition.module.removeprefix(PACKAGE + ".")
        if room.startswith("app.") or definition.is_constant:
            continue
        parts = [*room.split("."), definition.name]
        names = (".".join(parts[start:]) for start in reversed(range(len(parts))))
        listed.append((next(name for name in names if _is_found(name, definition)), definition))
    return listed


def _is_found(name: str, definition: Definition) -> bool:
    try:
        return find(name) == definition
    except UnknownNameError:
        return False


def find(name: str) -> Definition:
    """The definition of a name, dotted if it exists twice; else an ``UnknownNameError``.

    If one chapter has the name, it is the chapter's: ``generate`` is that of chapter 5. A name by
    which a module imports a definition is one too: ``kv_cache.gpt2.GPTModel``.
    """
    matches = [d for d in public_definitions() if f".{d.dotted_name}".endswith(f".{name}")]
    matches = matches or _imported_as(name)
    of_chapters = [d for d in matches if d.module.startswith(f"{PACKAGE}.ch0")]
    if len(of_chapters) == 1:
        return of_chapters[0]
    if len(matches) > 1:
        raise UnknownNameError(
            f"{name!r} exists {len(matches)} times; say which: "
            + ", ".join(d.dotted_name.removeprefix(f"{PACKAGE}.") for d in matches)
        )
    if not matches:
        raise UnknownNameError(f"there is no {name!r} in {PACKAGE}; {_proposal(name)}")
    return matches[0]


def _imported_as(name: str) -> list[Definition]:
    """What modules import under a dotted name, ``kv_cache.gpt2.GPTModel`` for example."""
    room, _, last = name.rpartition(".")
    modules = [m for path, m in package().items() if room and f".{path}".endswith(f".{room}")]
    found = [m.imports[last] for m in modules if last in m.imports]
    found = [i for i in found if i.root == PACKAGE and f"{i.module}.{i.name}" not in package()]
    return list(dict.fromkeys(follow(i) for i in found))


def _proposal(name: str) -> str:
    """What the reader may have meant: another case, a module, a part of a name, a slip."""
    modules = [path for path in package() if f".{path}".lower().endswith(f".{name.lower()}")]
    if modules:
        module = package()[modules[0]]
        ours = [name for name, found in module.imports.items() if found.root == PACKAGE]
        names = [name for name in [*module.definitions, *ours] if not name.startswith("_")]
        return f"that is a module, name one of its definitions: {', '.join(names[:8])} ..."
    last = name.rpartition(".")[2]
    names = list(dict.fromkeys(d.name for d in public_definitions() if not d.is_constant))
    lower = {n.lower(): n for n in names}
    close = [lower[last.lower()]] if last.lower() in lower else []
    close = close or difflib.get_close_matches(last, names, n=3)
    close = close or [n for n in names if last.lower() in n.lower()][:5]
    return f"did you mean {', '.join(close)}?" if close else "--list shows all names"


def follow(found: Import) -> Definition:
    """The definition behind an import, also if the module imports it from another one."""
    module = package()[found.module]
    if found.name not in module.definitions | module.imports:
        raise UnknownNameError(f"{found.module} has no {found.name!r}")
    return module.definitions.get(found.name) or follow(module.imports[found.name])
