"""Make a web edition of the repository: chapters, notebooks and the package's source, to read.

    python tools/build_site.py              # writes the folder site; open site/index.html

It needs the dependency group "site" (``uv sync --group site``). Pages are what the repository has,
unchanged but for two things: links to a folder lead to its page, and under a cell that shows a
definition of the package stand its home and the command that copies it. Nothing on the pages is
loaded from elsewhere. A broken link between pages is an error.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import nbformat
from repository import ROOT, relative, tracked_files

from llms_from_scratch.app.source_index import package

SETTINGS = ROOT / "tools" / "site"
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"```.*?```", re.DOTALL)
PARTS = (  # captions of the navigation, and the folders below them
    ("Start", ("setup", "docs", "ch01")),
    ("Chapters", ("ch02", "ch03", "ch04", "ch05", "ch06", "ch07")),
    ("Appendices", ("appendix-A", "appendix-B", "appendix-C", "appendix-D", "appendix-E")),
    ("More", ("benchmarks",)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="(default: site)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "source"), Path(folder, "site")
        collect(source)
        command = [sys.executable, "-m", "sphinx", "-b", "html", "-j", str(os.cpu_count())]
        status = subprocess.run([*command, "-q", "-W", "--keep-going", source, made]).returncode
        if status == 0:
            shutil.rmtree(args.out, ignore_errors=True)
            shutil.copytree(
                made, args.out, ignore=shutil.ignore_patterns(".doctrees", ".buildinfo")
            )
            print(f"Open {args.out / 'index.html'}")
    return status


def collect(target: Path) -> list[Path]:
    """Copy the pages, what they show and what they link to; return the pages' relative paths."""
    pages = []
    for path in tracked_files():
        if path.suffix == ".md" and relative(path).startswith((".", "tests/")):
            continue  # for those who work on the repository
        copy = target / relative(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            copy.write_text(with_links_to_pages(path.read_text("utf-8"), path), encoding="utf-8")
        elif path.suffix == ".ipynb":
            nbformat.write(web_notebook(path), copy)
        else:
            shutil.copyfile(path, copy)
        if path.suffix in (".md", ".ipynb"):
            pages.append(path.relative_to(ROOT))
    pages += write_package_pages(target)
    add_navigation(target, pages)
    shutil.copyfile(SETTINGS / "conf.py", target / "conf.py")
    (target / "_static").mkdir()
    shutil.copyfile(SETTINGS / "site.css", target / "_static" / "site.css")
    return pages


def with_links_to_pages(text: str, page: Path) -> str:
    """Links to folders lead to the page of the folder; code is left alone.

    A folder without a page, and one outside of the repository, is no link any more.
    """

    def to_page(match: re.Match) -> str:
        text, target = match.groups()
        path, hash_sign, anchor = target.partition("#")
        if not path or ":" in path:
            return match.group()
        goal = (page.parent / path).resolve()
        if goal == ROOT / "llms_from_scratch":
            goal = ROOT / "package" / "index.md"
        elif goal.is_dir():
            goal = goal / "README.md"
            if not goal.is_file():
                return text
        if goal == ROOT / "README.md":
            goal = ROOT / "index.md"
        return f"[{text}]({from_page(goal, page)}{hash_sign}{anchor})"

    pieces, last = [], 0
    for block in FENCE.finditer(text):
        pieces += [LINK.sub(to_page, text[last : block.start()]), block.group()]
        last = block.end()
    return "".join(pieces) + LINK.sub(to_page, text[last:])


def from_page(goal: Path, page: Path) -> str:
    return Path(os.path.relpath(goal, page.parent)).as_posix()


def web_notebook(path: Path) -> nbformat.NotebookNode:
    """The notebook, with the home of each definition below the cell that shows it."""
    notebook = nbformat.read(path, as_version=4)
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_links_to_pages(cell.source, path)
        cells.append(cell)
        names = cell.metadata.get("definition", "").split()
        if names:
            cells.append(nbformat.v4.new_markdown_cell(home_of(names, path)))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    notebook.cells = cells
    return notebook


def home_of(names: list[str], page: Path) -> str:
    """A line with a link to the source of each definition, and the command that copies them."""
    links, short = [], []
    for dotted in names:
        module, _, name = dotted.rpartition(".")
        home = from_page(ROOT / "package" / f"{module}.md", page)
        links.append(f"[{module.removeprefix('llms_from_scratch.')}]({home})")
        short.append(name)
    homes = ", ".join(dict.fromkeys(links))
    command = f"llms-from-scratch copy {' '.join(short)}"
    return f'<div class="copy-definition">\n\nSource: {homes}. Copy it: `{command}`\n\n</div>'


def write_package_pages(target: Path) -> list[Path]:
    """One page per module: its description, then each definition under its name."""
    folder = target / "package"
    folder.mkdir(parents=True)
    pages = []
    for name, module in package().items():
        short = name.removeprefix("llms_from_scratch.")
        described = module.source.startswith('"""')
        about = module.source.split('"""')[1].strip() if described else ""
        parts = [f"# {short}", f"```text\n{about}\n```" if about else ""]
        for definition in sorted(module.definitions.values(), key=lambda d: d.line):
            parts += [f"## {definition.name}", f"````python\n{definition.source}\n````"]
        pages.append(Path("package", f"{name}.md"))
        (target / pages[-1]).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return pages


def add_navigation(target: Path, pages: list[Path]) -> None:
    """Tables of contents: of the front page by folder, of a folder's page with all below it."""
    known = set(pages)
    front = (target / "README.md").read_text(encoding="utf-8")
    for caption, folders in PARTS:
        homes = [Path(folder, "README.md") for folder in folders]
        front += toctree([home for home in homes if home in known], caption)
    others = [Path(name) for name in ("CONTRIBUTING.md", "SCALING.md", "README.zh-CN.md")]
    others = [Path("package/index.md"), *(page for page in others if page in known)]
    front += toctree(others, "Reference")
    (target / "index.md").write_text(front, encoding="utf-8")
    (target / "README.md").unlink()
    package_pages = [page for page in pages if page.parts[0] == "package"]
    index = "# The package\n\nEvery definition, module by module.\n"
    index += toctree([page.relative_to("package") for page in package_pages])
    (target / "package" / "index.md").write_text(index, encoding="utf-8")
    for home in sorted(page for page in known if page.name == "README.md" and len(page.parts) > 1):
        below = sorted(children(home, known), key=natural_order)
        text = (target / home).read_text(encoding="utf-8")
        text += toctree([page.relative_to(home.parent) for page in below])
        (target / home).write_text(text, encoding="utf-8")


def children(home: Path, pages: set[Path]) -> list[Path]:
    """Pages in the folder of a page, and those of folders below it up to the next such page."""
    homes = {page.parent for page in pages if page.name == "README.md"}

    def next_home(page: Path) -> Path:
        start = page.parent.parent if page.name == "README.md" else page.parent
        return next(f for f in (start, *start.parents) if f in homes or f == Path())

    return [page for page in pages if page != home and next_home(page) == home.parent]


def natural_order(page: Path) -> tuple:
    """Main notebooks first, exercises last, else by name."""
    return len(page.parts), "exercise" in page.name, page.parts


def toctree(pages: list[Path], caption: str = "") -> str:
    if not pages:
        return ""
    names = "\n".join(page.as_posix() for page in pages)
    option = f":caption: {caption}\n" if caption else ""
    return f"\n\n```{{toctree}}\n:hidden:\n:maxdepth: 2\n{option}\n{names}\n```\n"


if __name__ == "__main__":
    sys.exit(main())
