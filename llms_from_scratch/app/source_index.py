"""The package's own source as an index: every definition, with its text and its module.

Nothing is imported for it; modules are read as text and syntax trees. ``copying`` and the tool that
fills the notebooks' definition cells are built on it.
"""

import ast
import difflib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "llms_from_scratch"
ROOT = Path(__file__).parent.parent
NOT_FOR_READERS = {f"{PACKAGE}.app.{name}" for name in ("cli", "copying", "source_index")}


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
    def summary(self) -> str:
        """The first line of the docstring, or of a constant."""
        node = ast.parse(self.source).body[0]
        is_constant = isinstance(node, ast.Assign | ast.AnnAssign)
        text = ast.unparse(node) if is_constant else ast.get_docstring(node) or ""
        return text.split("\n")[0][:90]


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
    return [name for name in names if not name.startswith("__")]


def imports_of(node: ast.stmt) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, None, alias.asname or alias.name.split(".")[0])
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield Import(node.module, alias.name, alias.asname or alias.name)


@functools.cache
def package() -> dict[str, Module]:
    """All modules with definitions for readers, chapters first."""
    modules = {}
    for path in sorted(ROOT.rglob("*.py"), key=lambda p: (not p.stem.startswith("ch0"), p)):
        parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in NOT_FOR_READERS:
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


def find(name: str) -> Definition:
    """The definition of a name, dotted if it exists twice; else an ``UnknownNameError``.

    If one chapter has the name, it is the chapter's: ``generate`` is that of chapter 5.
    """
    matches = [d for d in public_definitions() if f".{d.dotted_name}".endswith(f".{name}")]
    of_chapters = [d for d in matches if d.module.startswith(f"{PACKAGE}.ch0")]
    if len(of_chapters) == 1:
        return of_chapters[0]
    if len(matches) > 1:
        raise UnknownNameError(
            f"{name!r} exists {len(matches)} times; say which: "
            + ", ".join(d.dotted_name.removeprefix(f"{PACKAGE}.") for d in matches)
        )
    if not matches:
        close = difflib.get_close_matches(name, {d.name for d in public_definitions()}, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "--list shows all names"
        raise UnknownNameError(f"there is no {name!r} in {PACKAGE}; {hint}")
    return matches[0]


def follow(found: Import) -> Definition:
    """The definition behind an import, also if the module imports it from another one."""
    module = package()[found.module]
    return module.definitions.get(found.name) or follow(module.imports[found.name])
