"""Front pages, glossary and list of errors: complete, alike in two languages, up to date."""

import re

import error_messages
import link_glossary
import nbformat
import pytest
from repository import ROOT, relative, tracked_files

NOTEBOOKS = tracked_files("*.ipynb")


def test_the_page_of_errors_lists_every_message_of_the_package():
    page = error_messages.PAGE.read_text(encoding="utf-8")
    assert error_messages.make_page(page) == page, "run python tools/error_messages.py"
    listed = page.partition(error_messages.BEGIN)[2]
    assert len(re.findall(r"^\| `", listed, re.MULTILINE)) > 400


def test_a_message_is_shown_with_its_values_named_and_its_condition(tmp_path, monkeypatch):
    source = tmp_path / "ch02.py"
    source.write_text(
        'def f(stride):\n    if stride < 1:\n        raise ValueError(f"got {stride=} here")\n',
        encoding="utf-8",
    )
    monkeypatch.setattr(error_messages, "PACKAGE", tmp_path)
    (message,) = error_messages.messages()
    assert message.text == "got stride=<stride> here"
    assert (message.cause, message.function) == ("`stride < 1`", "f")


def test_both_glossaries_explain_the_same_terms_in_the_same_order():
    english, chinese = (
        (ROOT / "docs" / name).read_text(encoding="utf-8")
        for name in ("glossary.md", "glossary.zh-CN.md")
    )
    headings = re.findall(r"^## (.+)$", english, re.MULTILINE)
    assert headings == re.findall(r"^\*(.+?)\.\* ", chinese, re.MULTILINE)
    assert len(headings) == len(set(headings)) == len(re.findall(r"^## ", chinese, re.MULTILINE))
    for text in (english, chinese):
        for folder in re.findall(r"\]\(\.\./([\w-]+)\)", text):
            assert (ROOT / folder).is_dir()


def front_pages() -> list[str]:
    return [(ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md")]


def test_both_front_pages_have_the_same_sections_commands_and_tables():
    shapes = []
    for text in front_pages():
        headings = re.findall(r"^(#+) ", text, re.MULTILINE)
        commands = re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        commands = [re.sub(r"\s+#.*", "", command) for command in commands]
        rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
        shapes.append((headings, commands, rows))
    assert shapes[0] == shapes[1]


def test_both_front_pages_lead_to_the_same_places_and_each_exists():
    places = []
    for text in front_pages():
        targets = re.findall(r"\]\(([^)\s]+)\)|<(https?://[^>]+)>", text)
        found = {first or second for first, second in targets}
        local = {target.partition("#")[0] for target in found if "://" not in target} - {""}
        for target in local:
            assert (ROOT / target).exists(), target
        places.append({target.replace(".zh-CN", "") for target in local} - {"README.md"})
        places[-1] |= {target for target in found if "://" in target}
    assert places[0] == places[1]


def test_the_front_page_leads_to_every_folder_of_every_chapter():
    text = front_pages()[0]
    chapters = [path for path in ROOT.iterdir() if re.fullmatch(r"ch\d\d|appendix-.", path.name)]
    for chapter in chapters:
        assert f"({chapter.name})" in text
        for folder in chapter.iterdir():
            if (folder / "README.md").is_file() and not folder.name.startswith("01_"):
                name = f"{chapter.name}/{folder.name}"
                assert f"({name})" in text or chapter.name == "appendix-A", name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_first_uses_of_terms_are_linked(path):
    terms = link_glossary.read_terms(link_glossary.GLOSSARY.read_text(encoding="utf-8"))
    notebook = nbformat.read(path, as_version=4)
    changed = link_glossary.link_first_uses(notebook, terms, link_glossary.link_prefix(path))
    assert not changed, f"run python tools/link_glossary.py {relative(path)}"


def test_only_prose_is_linked_and_each_term_once():
    terms = {"causal mask": "causal-mask", "mask": "mask", "token": "token"}
    text = (
        "# A mask\n`mask` of a [mask](x) and $mask$; the\nCausal\nmask, a mask, a token and a mask."
    )
    linked = link_glossary.link_text(text, terms, "g.md", {"causal-mask", "mask", "token"})
    assert linked == (
        "# A mask\n`mask` of a [mask](x) and $mask$; the\n[Causal\nmask](g.md#causal-mask), "
        "a [mask](g.md#mask), a [token](g.md#token) and a mask."
    )
    unlinked = link_glossary.OURS.sub(r"\1", linked.replace("(g.md", "(../docs/glossary.md"))
    assert unlinked == text
