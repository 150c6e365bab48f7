"""Every notebook runs top to bottom, shows the package's source, and reads complete offline."""

import ast
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import run_notebooks
import sync_notebooks

from llms_from_scratch.data import cached_path, find_asset
from llms_from_scratch.data.package_file import installed_file

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sync_notebooks.all_notebooks()
MACHINE_PATH = re.compile(r"/root/|/home/|/Users/|/work/|/tmp/|[A-Z]:\\\\?Users")
REMOTE_IMAGE = re.compile(r"!\[[^\]]*\]\(https?:|<img[^>]+src=[\"']https?:", re.IGNORECASE)
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
SMOLLM2 = "smollm2-135m-instruct"
VARIES = {"nbval-skip", "nbval-ignore-output"}  # tags of cells that print versions or timings

all_notebooks = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell) -> str:
    """What a cell printed and showed as text, without addresses of objects in memory."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            parts.append(output.text)
        elif "data" in output:
            parts.append(output["data"].get("text/plain", ""))
    return re.sub(r"0x[0-9a-f]+", "0x", "\n".join(parts))


def changed_cells(committed, executed) -> list[str]:
    """What each cell prints now, if it is not what is committed; cells that vary are left out."""
    pairs = zip(code_cells(committed), code_cells(executed), strict=True)
    return [
        f"code cell {number} prints now: {text_of(new)}"
        for number, (old, new) in enumerate(pairs, start=1)
        if not VARIES & set(old.metadata.get("tags", [])) and text_of(new) != text_of(old)
    ]


@pytest.fixture
def real_model(path, request) -> None:
    """SmolLM2 in the tests' own cache, for a notebook that loads it; a skip where it is absent.

    A notebook that takes the strongest model at hand runs without it, with another one.
    """
    text = path.read_text(encoding="utf-8")
    if SMOLLM2 not in text:
        return
    try:
        found = request.getfixturevalue("smollm2_path")
    except pytest.skip.Exception:
        if "choose_strongest(" in text:
            return
        raise
    asset = find_asset(f"{SMOLLM2}/model.gguf")
    if found != installed_file(asset.packages[0]) and not cached_path(asset).is_file():
        cached_path(asset).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, cached_path(asset))


@all_notebooks
@pytest.mark.usefixtures("real_model")
def test_notebook_runs_without_a_network_and_prints_what_is_committed(path):
    """Outputs are compared where the real data are, with which the committed ones were made."""
    committed = nbformat.read(path, as_version=4)
    executed = run_notebooks.execute(path, quick=True)
    if not os.environ.get("LLMS_FROM_SCRATCH_MIRROR"):
        return
    assert changed_cells(committed, executed) == []


IN_SHORT = [path for path in NOTEBOOKS if run_notebooks.IN_FULL in path.read_text("utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("path", IN_SHORT, ids=lambda path: path.relative_to(ROOT).as_posix())
@pytest.mark.usefixtures("real_model")
@pytest.mark.timeout(3600)
def test_notebook_that_the_other_tests_run_in_short_runs_whole(path):
    committed = nbformat.read(path, as_version=4)
    executed = run_notebooks.execute(path, timeout=3600)
    if os.environ.get("LLMS_FROM_SCRATCH_MIRROR"):
        assert changed_cells(committed, executed) == []


@all_notebooks
def test_notebook_is_committed_executed_in_order_and_without_errors(path):
    cells = [cell for cell in code_cells(nbformat.read(path, as_version=4)) if cell.source]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text


@all_notebooks
def test_notebook_shows_no_path_of_the_machine_it_was_run_on(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not MACHINE_PATH.search(cell.source)
        assert not MACHINE_PATH.search(text_of(cell) if cell.cell_type == "code" else "")
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@all_notebooks
def test_notebook_has_local_images_with_alternative_text(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert not REMOTE_IMAGE.search(cell.source)
            for alternative, target in IMAGE.findall(cell.source):
                assert len(alternative) > 20, target
                assert (path.parent / target).is_file(), target


@all_notebooks
def test_notebook_cells_fit_on_a_screen(path):
    for cell in code_cells(nbformat.read(path, as_version=4)):
        lines = cell.source.count("\n") + 1
        assert lines <= 40 or "definition" in cell.metadata, cell.source[:200]


@all_notebooks
def test_notebook_edits_no_import_path_and_imports_no_star(path):
    for cell in code_cells(nbformat.read(path, as_version=4)):
        assert "sys.path" not in cell.source
        if "definition" not in cell.metadata and not re.search(r"^\s*[%!]", cell.source, re.M):
            for node in ast.walk(ast.parse(cell.source)):
                assert not isinstance(node, ast.ImportFrom) or node.names[0].name != "*"


@all_notebooks
def test_definition_cells_show_the_packages_source(path):
    assert sync_notebooks.sync_notebook(path, write=False) == []


# --- The tool that keeps them so ---


@pytest.fixture
def notebook(tmp_path) -> Path:
    cell = nbformat.v4.new_code_cell(
        "pass",
        metadata={"definition": "llms_from_scratch.ch04.GELU llms_from_scratch.ch04.LayerNorm"},
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    return tmp_path / "n.ipynb"


def source_of(path, cell=0):
    return nbformat.read(path, as_version=4).cells[cell].source


def test_sync_fills_a_cell_and_check_finds_nothing_afterwards(notebook):
    assert "differs from the package's source" in sync_notebooks.sync_notebook(notebook, False)[0]
    assert source_of(notebook) == "pass"  # --check writes nothing
    assert sync_notebooks.sync_notebook(notebook, write=True) == []
    assert source_of(notebook).startswith("class GELU(nn.Module):")
    assert "\n\n\nclass LayerNorm(nn.Module):" in source_of(notebook)
    assert sync_notebooks.sync_notebook(notebook, write=False) == []


def test_check_catches_a_single_changed_character(notebook):
    sync_notebooks.sync_notebook(notebook, write=True)
    content = notebook.read_text(encoding="utf-8")
    assert content.count("0.044715") == 1
    notebook.write_text(content.replace("0.044715", "0.044716"), encoding="utf-8")
    (problem,) = sync_notebooks.sync_notebook(notebook, write=False)
    assert "cell 0: llms_from_scratch.ch04.GELU" in problem


def test_check_catches_names_that_the_package_lacks_and_second_homes(notebook):
    cells = [
        nbformat.v4.new_code_cell("", metadata={"definition": "llms_from_scratch.ch04.Gelu"}),
        nbformat.v4.new_code_cell("class GPTModel:\n    pass"),
        nbformat.v4.new_code_cell("class DummyGPTModel:\n    pass"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    problems = sync_notebooks.sync_notebook(notebook, write=True)
    assert len(problems) == 2
    assert "the package has no llms_from_scratch.ch04.Gelu" in problems[0]
    assert "GPTModel is llms_from_scratch.ch04.GPTModel" in problems[1]


def test_a_definition_is_taken_with_its_decorators_and_constants_are_found():
    fetched = sync_notebooks.definition_source("llms_from_scratch.data.Fetched")
    assert fetched.startswith("@dataclass(frozen=True)\nclass Fetched:")
    samples = sync_notebooks.definition_source("llms_from_scratch.data.SAMPLES")
    assert samples.startswith("SAMPLES = Path")


def test_the_short_form_sets_one_parameter_and_leaves_the_committed_cell(tmp_path):
    cell = nbformat.v4.new_code_cell("QUICK = False", metadata={"tags": ["parameters"]})
    other = nbformat.v4.new_code_cell("print(QUICK)")
    notebook = nbformat.v4.new_notebook(cells=[cell, other])
    path = tmp_path / "n.ipynb"
    nbformat.write(notebook, path)
    assert text_of(run_notebooks.execute(path).cells[1]) == "False\n"
    executed = run_notebooks.execute(path, quick=True)
    assert text_of(executed.cells[1]) == "True\n"
    assert executed.cells[0].source == "QUICK = False"


def test_the_measured_time_is_written_where_the_first_cell_names_it():
    def after(source, seconds):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source)])
        run_notebooks.write_running_time(notebook, seconds)
        return notebook.cells[0].source

    old = "# A\n\nRunning time: about 2 minutes on two CPU cores with this model."
    assert after(old, 41) == old.replace("2 minutes", "50 seconds")
    assert after(old, 280) == old.replace("2 minutes", "5 minutes")
    assert after("# B", 41) == "# B"
    words = [run_notebooks.in_words(seconds) for seconds in (3, 14, 60, 61)]
    assert words == ["a few seconds", "about 20 seconds", "about 60 seconds", "about 2 minutes"]


def test_an_output_that_is_no_longer_printed_is_found():
    def printed(text, **metadata):
        stream = nbformat.v4.new_output("stream", name="stdout", text=text)
        return nbformat.v4.new_code_cell("print(loss)", outputs=[stream], metadata=metadata)

    notes = nbformat.v4.new_markdown_cell("a table")
    varies = {"tags": ["nbval-ignore-output"]}
    old = nbformat.v4.new_notebook(cells=[printed("0.1"), notes, printed("2 s", **varies)])
    new = nbformat.v4.new_notebook(cells=[printed("0.1"), notes, printed("3 s", **varies)])
    assert changed_cells(old, new) == []
    new.cells[0] = printed("0.2")
    assert changed_cells(old, new) == ["code cell 1 prints now: 0.2"]
