"""The web edition: every page is in it, and links lead to pages. (Sphinx itself: -m slow.)"""

import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import build_site
import pytest
from repository import ROOT, relative, tracked_files


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("site") / "source"
    build_site.collect(target)
    return target


def test_each_page_and_each_notebook_is_found_from_the_front_page(source):
    reached, waiting = set(), [source / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for tree in (
            page.read_text("utf-8").split("```{toctree}")[1:] if page.suffix == ".md" else ()
        ):
            lines = tree.split("```")[0].splitlines()
            names = [line for line in lines if line and not line.startswith(":")]
            waiting += [page.parent / name for name in names]
    for path in tracked_files("*.md", "*.ipynb"):
        name = relative(path)
        if not name.startswith((".", "tests/")) and name != "README.md":
            assert source / name in reached, name


def test_below_a_definition_stand_its_home_and_the_command_that_copies_it():
    notebook = build_site.web_notebook(ROOT / "ch03/01_main-chapter-code/ch03.ipynb")
    shown = [i for i, cell in enumerate(notebook.cells) if cell.metadata.get("definition")]
    assert shown
    for i in shown:
        name = notebook.cells[i].metadata["definition"].split()[0].rpartition(".")[2]
        assert f"llms-from-scratch copy {name}" in notebook.cells[i + 1].source
        assert "../../package/llms_from_scratch.ch03.md" in notebook.cells[i + 1].source


def test_links_to_folders_lead_to_their_pages_and_code_is_left_alone():
    page = ROOT / "ch05" / "README.md"
    text = "[`ui`](06_user_interface) [home](../README.md#two-commands) [all](.)\n"
    code = "```bash\n[a](06_user_interface)\n```\n"
    made = build_site.with_links_to_pages(text + code + "[figures](12_gemma3/figures)", page)
    assert "[`ui`](06_user_interface/README.md)" in made
    assert "[home](../index.md#two-commands)" in made
    assert code in made
    assert made.endswith("\nfigures")


class Assets(HTMLParser):
    def __init__(self):
        super().__init__()
        self.loaded = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.loaded.append(attrs.get("src") or "")
        if tag == "link" and attrs.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(attrs.get("href") or "")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("sphinx"), reason="needs the dependency group site")
def test_the_whole_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    tool = ROOT / "tools" / "build_site.py"
    done = subprocess.run([sys.executable, tool, "--out", tmp_path / "site"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    for page in (tmp_path / "site").rglob("*.html"):
        parser = Assets()
        parser.feed(page.read_text("utf-8"))
        assert not [
            url for url in parser.loaded if "//" in url.split("?")[0] and "data:" not in url
        ]
