"""Link the first use of each term of the glossary in each notebook to its entry.

    python tools/link_glossary.py            # rewrite the links in all notebooks
    python tools/link_glossary.py --check    # change nothing, exit with 1 if a notebook differs

Only prose counts: code, headings, links, pictures and formulas are left alone. A term is known by
its heading in docs/glossary.md and by the words after "Also:" below it.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import nbformat
from repository import ROOT, relative, tracked_files

GLOSSARY = ROOT / "docs" / "glossary.md"
ENTRY = re.compile(r"^## (.+?)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
ALSO = re.compile(r"^\*Also: (.+)\.\*$", re.MULTILINE)
OURS = re.compile(r"\[([^\[\]]+)\]\((?:\.\./)+docs/glossary\.md#[\w-]+\)")
NOT_PROSE = re.compile(
    r"```.*?```|`[^`\n]*`|!?\[(?:[^\[\]]|\[[^\]]*\])*\]\([^)]*\)|<[^>\n]*>|\$[^$\n]+\$"
    r"|^#.*?$|https?://\S+|\"[^\"]*\"",
    re.MULTILINE | re.DOTALL,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="(default: all)")
    parser.add_argument("--check", action="store_true", help="change nothing, name what differs")
    args = parser.parse_args()
    terms, differing = read_terms(GLOSSARY.read_text(encoding="utf-8")), []
    for path in args.notebooks or tracked_files("*.ipynb"):
        path = path.resolve()
        notebook = nbformat.read(path, as_version=4)
        if link_first_uses(notebook, terms, link_prefix(path)):
            differing.append(relative(path))
            if not args.check:
                nbformat.write(notebook, path)
    print("\n".join(differing) or "first uses are linked")
    return bool(args.check and differing)


def read_terms(glossary: str) -> dict[str, str]:
    """Each word or phrase, and the anchor of its entry; longer ones first."""
    terms = {}
    for heading, text in ENTRY.findall(glossary):
        anchor = re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-"))
        also = ALSO.search(text)
        for term in (heading, *(also.group(1).split(", ") if also else ())):
            terms[term] = anchor
    return dict(sorted(terms.items(), key=lambda item: -len(item[0])))


def link_prefix(path: Path) -> str:
    return Path(os.path.relpath(GLOSSARY, path.parent)).as_posix()


def link_first_uses(notebook: nbformat.NotebookNode, terms: dict[str, str], prefix: str) -> bool:
    """Link, in place, what is not linked yet where it should be; say whether that changed it."""
    missing, changed = set(terms.values()), False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = OURS.sub(r"\1", cell.source)
            text = link_text(text, terms, prefix, missing)
            changed |= text != cell.source
            cell.source = text
    return changed


def link_text(text: str, terms: dict[str, str], prefix: str, missing: set[str]) -> str:
    """The text with a link at the first use of each missing entry, which is missing no longer."""
    known = "|".join(pattern_of(term) for term, anchor in terms.items() if anchor in missing)
    if not known:
        return text
    pieces, last = [], 0
    for start, end in prose(text):
        pieces += [text[last:start], link_prose(text[start:end], known, terms, prefix, missing)]
        last = end
    return "".join(pieces) + text[last:]


def link_prose(text: str, known: str, terms: dict, prefix: str, missing: set[str]) -> str:
    by_lower = {term.lower(): anchor for term, anchor in terms.items()}

    def link(match: re.Match) -> str:
        word = match.group()
        anchor = by_lower[" ".join(word.lower().split())]
        if anchor not in missing:
            return word
        missing.discard(anchor)
        return f"[{word}]({prefix}#{anchor})"

    return re.sub(rf"(?<![\w.-])(?:{known})(?![\w-])", link, text)


def pattern_of(term: str) -> str:
    """Small letters may be capital at the start of a sentence; a space may be a line's end."""
    first = term[0]
    head = f"[{first}{first.upper()}]" if first.islower() else re.escape(first)
    return head + re.escape(term[1:]).replace(r"\ ", r"\s+")


def prose(text: str) -> Iterator[tuple[int, int]]:
    last = 0
    for other in NOT_PROSE.finditer(text):
        yield last, other.start()
        last = other.end()
    yield last, len(text)


if __name__ == "__main__":
    sys.exit(main())
