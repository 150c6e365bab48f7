"""``llms-from-scratch copy``: a definition of this package as one file that stands alone.

The sources of the wanted names and of everything they need are put into one file, in an order in
which each comes after what it uses; imports are merged at its head.
"""

import ast
import re
import symtable
import sys
import textwrap

from llms_from_scratch import __version__
from llms_from_scratch.app.source_index import (
    PACKAGE,
    Definition,
    Import,
    find,
    follow,
    imports_of,
    package,
)

# The package brings GPT-2's vocabulary as a file; a copied file leaves that to tiktoken
REPLACEMENTS = {
    f"{PACKAGE}.tokenizer.get_tokenizer": '''@functools.cache
def get_tokenizer(name: str = "gpt2") -> tiktoken.Encoding:
    """Return the tokenizer of that name; tiktoken downloads its vocabulary once."""
    try:
        return tiktoken.get_encoding(name)
    except OSError as error:
        raise RuntimeError(
            f"tiktoken could not download the vocabulary {name!r}: use it once with a network, or "
            f"set TIKTOKEN_CACHE_DIR to a folder that has it ({type(error).__name__})"
        ) from None'''
}


class CannotCopyError(ValueError):
    """A definition needs a file of this package, which a copy cannot carry."""


def source_of(definition: Definition) -> str:
    return REPLACEMENTS.get(definition.dotted_name, definition.source)


def globals_used(source: str) -> set[str]:
    """Names of a definition's source that Python looks up in the module around it."""
    top = symtable.symtable(source, "copied", "exec")
    names = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        names |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        tables += table.get_children()
    return names


def needs(definition: Definition) -> tuple[dict[str, Definition], dict[str, Import]]:
    """What a definition uses, by the name it uses: from this package, and from elsewhere."""
    module = package()[definition.module]
    inside, outside = {}, {}
    for name in sorted(globals_used(source_of(definition))):
        if name == "__file__":
            raise CannotCopyError(f"{definition.dotted_name} is a path inside of this package")
        if name in module.definitions and name != definition.name:
            inside[name] = module.definitions[name]
        elif name in module.imports:
            found = module.imports[name]
            if found.root != PACKAGE:
                outside[name] = found
            elif found.module not in package():
                raise CannotCopyError(f"{found.module} is a program, and lies in this package")
            elif f"{found.module}.{found.name}" in package():
                whole = f"{found.module}.{found.name}"
                raise CannotCopyError(f"{definition.dotted_name} needs all of {whole}")
            else:
                inside[name] = follow(found)
    if re.search(rf'files\("{PACKAGE}', source_of(definition)):
        raise CannotCopyError(f"{definition.dotted_name} reads a file that lies in this package")
    return inside, outside


def can_be_copied(definition: Definition) -> bool:
    try:
        return bool(collect([definition]))
    except CannotCopyError:
        return False


def collect(wanted: list[Definition]) -> list[Definition]:
    """The wanted definitions and all they need, each after what it uses."""
    ordered: list[Definition] = []

    def visit(definition: Definition, path: tuple[Definition, ...]) -> None:
        if definition in ordered or definition in path:
            return
        try:
            inside, _ = needs(definition)
        except CannotCopyError as error:
            chain = " needs ".join(d.name for d in (*path, definition))
            wanted = (*path, definition)[0]
            raise CannotCopyError(
                f"{chain} cannot be copied: {error}; import it instead, where this package is "
                f"installed: from {wanted.module} import {wanted.name}"
            ) from None
        for needed in sorted(inside.values(), key=lambda d: (d.module, d.line)):
            visit(needed, (*path, definition))
        ordered.append(definition)

    for definition in wanted:
        visit(definition, ())
    return ordered


def unique_names(definitions: list[Definition]) -> dict[Definition, str]:
    """A name for each definition; of two with the same name, one gets its module's too.

    A chapter's keeps its name, as the book prints it; else the one that comes first.
    """
    names: dict[Definition, str] = {}
    for d in sorted(definitions, key=lambda d: not d.module.startswith(f"{PACKAGE}.ch0")):
        taken = d.name in names.values()
        names[d] = f"{d.name}_{d.module.rpartition('.')[2]}" if taken else d.name
    return names


def rename(source: str, new_names: dict[str, str]) -> str:
    """Replace names in a source; strings, comments and attributes stay as they are.

    >>> rename('f(x, y.f)  # f', {"f": "g"})
    'g(x, y.f)  # f'
    """
    lines = source.splitlines()
    places = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in new_names:
            places.append((node.lineno, node.col_offset, node.id))
        elif isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in new_names:
            column = re.compile(r"\w+ +").match(lines[node.lineno - 1], node.col_offset).end()
            places.append((node.lineno, column, node.name))
    for line, column, name in sorted(places, reverse=True):
        text = lines[line - 1].encode()  # columns count bytes
        text = text[:column] + new_names[name].encode() + text[column + len(name.encode()) :]
        lines[line - 1] = text.decode()
    return "\n".join(lines)


def standalone(names: list[str]) -> str:
    """The text of a file with the named definitions and everything they need."""
    wanted = [find(name) for name in names]
    definitions = collect(wanted)
    new_names = unique_names(definitions)
    imports: set[Import] = set()
    sources = []
    for definition in definitions:
        inside, outside = needs(definition)
        imports |= set(outside.values())
        changes = {name: new_names[needed] for name, needed in inside.items()}
        changes[definition.name] = new_names[definition]
        changes = {old: new for old, new in changes.items() if old != new}
        sources.append(rename(source_of(definition), changes))
    other_names = [
        f"# {name} is {definition.name} below"
        for name, definition in zip(names, wanted, strict=True)
        if name.rpartition(".")[2] != definition.name
    ]
    head = [
        textwrap.shorten(f"# {', '.join(d.name for d in wanted)}", 100, placeholder=" ..."),
        f"# Copied from {PACKAGE} {__version__}, the code companion to a book on LLMs from scratch",
        "# Licence: Apache License 2.0",
        *other_names,
    ]
    blank_lines = "\n\n\n" if sources[0].startswith(("class ", "def ", "@")) else "\n\n"
    import_block = "\n\n" + _import_block(imports) if imports else ""
    return "\n".join(head) + import_block + blank_lines + "\n\n\n".join(sources) + "\n"


def _import_block(imports: set[Import]) -> str:
    """Import lines in the usual order: the standard library, then packages to install."""
    sections = []
    for is_standard in (True, False):
        chosen = [i for i in imports if (i.root in sys.stdlib_module_names) == is_standard]
        plain = {ast.unparse(ast.Import([i.clause])) for i in chosen if i.name is None}
        froms = []
        for module in sorted({i.module for i in chosen if i.name}):
            names = [i for i in chosen if i.module == module and i.name]
            names.sort(key=lambda i: (not i.name.isupper(), i.name[0].islower(), i.name))
            froms.append(ast.unparse(ast.ImportFrom(module, [i.clause for i in names], 0)))
        sections.append("\n".join([*sorted(plain), *froms]))
    return "\n\n".join(filter(None, sections))


def needs_network(text: str) -> bool:
    """Whether a copied file downloads a vocabulary, which the package brings."""
    return "tiktoken.get_encoding(" in text


def packages_to_install(text: str) -> list[str]:
    """The packages that a copied file imports, at its head or inside of functions."""
    roots = {i.root for node in ast.walk(ast.parse(text)) for i in imports_of(node)}
    return sorted(roots - set(sys.stdlib_module_names))
