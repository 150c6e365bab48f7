"""A notebook as a module, files by address, and the notebook that readers use in this way."""

import http.server
import inspect
import json
import os
import sys
import threading
import traceback
from dataclasses import fields
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

from llms_from_scratch import utils
from llms_from_scratch.bpe import BPETokenizerSimple
from llms_from_scratch.data import DownloadError
from llms_from_scratch.utils import (
    download_file,
    download_file_if_absent,
    import_definitions_from_notebook,
)

ROOT = Path(__file__).resolve().parent.parent
BPE_NOTEBOOK = ROOT / "ch02" / "05_bpe-from-scratch" / "bpe-from-scratch.ipynb"
CHAPTERS = sorted(ROOT.glob("ch*/01_main-chapter-code/ch*.ipynb"))
ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"


@pytest.fixture
def notebook(tmp_path):
    """Write a notebook of these code cells; a cell is a string or a list of lines, as in files."""

    def write(*cells, name="my nb-1.ipynb") -> Path:
        content = [{"cell_type": "markdown", "source": "def not_code(): ..."}]
        content += [{"cell_type": "code", "source": cell, "outputs": []} for cell in cells]
        path = tmp_path / name
        path.write_text(json.dumps({"cells": content, "nbformat": 4}), encoding="utf-8")
        return path

    return write


def test_definitions_and_imports_are_there_and_nothing_else_was_run(notebook):
    path = notebook(
        "import math\nfrom math import floor as down\nSIZE = 3\nraise SystemExit('was run')",
        ["import functools\n", "@functools.lru_cache(\n", "    maxsize=None,\n", ")\n"]
        + ["def area(\n", "    radius,\n", "):\n", "    return down(math.pi * radius**2)\n"],
        "class Layer(nn.Module):\n    def forward(self, x):\n        return x.relu()\nprint(1/0)",
        "async def later(): ...",
    )
    module = import_definitions_from_notebook(path)
    assert module.__name__ == "my_nb_1" and module.__file__ == str(path)
    assert module.area(10) == 314 and module.area.cache_info().misses == 1
    assert torch.equal(module.Layer()(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
    assert inspect.iscoroutinefunction(module.later)
    assert module.torch is torch and module.nn is torch.nn
    assert not hasattr(module, "SIZE") and not hasattr(module, "not_code")
    assert "my_nb_1" not in sys.modules


def test_a_notebook_may_be_named_by_folder_and_name(notebook):
    path = notebook("def f(): return 1")
    assert import_definitions_from_notebook(str(path.parent), path.name).f() == 1
    assert import_definitions_from_notebook(path.parent, notebook_name=path.name).f() == 1
    with pytest.raises(FileNotFoundError, match="there is no notebook .*none.ipynb"):
        import_definitions_from_notebook(path.parent, "none.ipynb")
    with pytest.raises(FileNotFoundError):
        import_definitions_from_notebook(path.parent)


def test_the_last_of_two_definitions_holds_as_in_the_notebook(notebook):
    path = notebook("def f(): return 1", "from math import floor as f", "def f(): return 3")
    assert import_definitions_from_notebook(path).f() == 3
    path = notebook("def f(): return 1", "from math import floor as f")
    assert import_definitions_from_notebook(path).f(2.5) == 2


@pytest.mark.parametrize(
    "line",
    ["%matplotlib inline", "!pip install x", "files = !ls", "f?", "?f", "%%time", "x = %who"],
)
def test_lines_for_ipython_do_not_hide_definitions(notebook, line):
    text = '    """Why?\n    %matplotlib inline\n    !ls\n    """'
    path = notebook(f"{line}\nif True:\n    !ls\ndef f():\n{text}\n    return 7 \\\n    % 4")
    function = import_definitions_from_notebook(path).f
    assert function() == 3
    assert inspect.getdoc(function) == "Why?\n%matplotlib inline\n!ls"


def test_cells_in_other_languages_are_passed_over(notebook):
    path = notebook("%%bash\ndef f(): return 1; fi", "def f(): return 2")
    assert import_definitions_from_notebook(path).f() == 2


def test_a_cell_that_is_no_python_is_named(notebook):
    path = notebook("x = 1", "y = 1\ndef f(:\n    pass")
    with pytest.raises(ValueError, match=r"my nb-1\.ipynb: cell 2 is not Python \(line 2: "):
        import_definitions_from_notebook(path)


@pytest.mark.parametrize("content", ["", "[1]", '{"worksheets": []}', '{"cells": [{"a": 1}]}'])
def test_a_file_that_is_no_notebook_is_named(tmp_path, content):
    (tmp_path / "n.ipynb").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"n\.ipynb is not a notebook of version 4"):
        import_definitions_from_notebook(tmp_path / "n.ipynb")


def test_a_constant_that_a_definition_needs_can_be_given(notebook):
    path = notebook("WIDTH = 5", "def f(width=WIDTH):\n    return width + HEIGHT")
    with pytest.raises(ValueError, match=r"cell 2 needs .*extra_globals=\{'WIDTH': \.\.\.\}"):
        import_definitions_from_notebook(path)
    module = import_definitions_from_notebook(path, extra_globals={"WIDTH": 2, "HEIGHT": 1})
    assert module.f() == 3


def test_loaders_of_weights_take_the_model_by_the_name_model(notebook):
    body = "    def inner():\n        return gpt.upper()\n    return inner() + params"
    path = notebook(
        f"def load_weights_into_gpt(gpt, params):\n{body}",
        f"def load_other(gpt, params):\n{body}",
        "def load_weights_into_all(models, model=2):\n    return models, model",
    )
    module = import_definitions_from_notebook(path)
    assert module.load_weights_into_gpt(model="a", params="gpt") == "Agpt"
    assert module.load_weights_into_gpt("a", "b") == "Ab"
    assert module.load_other(gpt="a", params="b") == "Ab"
    assert module.load_weights_into_all(models=1) == (1, 2)


def test_each_notebook_imports_the_files_beside_it(notebook, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "previous_chapters", raising=False)  # of other tests
    for folder, value in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "previous_chapters.py"
        path.write_text(f"def value(): return {value}", encoding="utf-8")
        notebook("from previous_chapters import value\ndef f(): return value()", name=f"{folder}/n")
    finders = list(sys.meta_path)
    for folder, value in (("one", 1), ("two", 2), ("one", 1)):
        assert import_definitions_from_notebook(tmp_path / folder / "n").f() == value
    assert "previous_chapters" not in sys.modules and sys.meta_path == finders


def test_a_module_that_was_imported_before_stays(notebook, tmp_path):
    (tmp_path / "json.py").write_text("def loads(): raise SystemExit", encoding="utf-8")
    finders = list(sys.meta_path)
    import_definitions_from_notebook(notebook("import json"))
    assert sys.modules["json"] is json
    broken = notebook("import no_such_module_at_all")
    with pytest.raises(ModuleNotFoundError):
        import_definitions_from_notebook(broken)
    assert sys.modules["json"] is json and sys.meta_path == finders


def test_dataclasses_with_annotations_as_text_work(notebook):
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    path = notebook(f"{source}@dataclass\nclass Point:\n    x: int\n    y: int = 2")
    point = import_definitions_from_notebook(path).Point(1)
    assert (point.x, point.y, len(fields(point))) == (1, 2, 2)


def test_a_traceback_shows_the_line_of_the_cell(notebook):
    path = notebook("x = 1\ndef f():\n    return 1 / 0  # the culprit")
    with pytest.raises(ZeroDivisionError) as caught:
        import_definitions_from_notebook(path).f()
    shown = "".join(traceback.format_exception(caught.value))
    assert "<my nb-1.ipynb, cell 1>" in shown and "the culprit" in shown


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapters_definitions_can_be_imported_from_anywhere(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = path.read_text(encoding="utf-8")
    module = import_definitions_from_notebook(path)
    if "class MultiHeadAttention(" in source:
        assert module.MultiHeadAttention(4, 4, 3, 0.0, num_heads=2)(torch.ones(1, 3, 4)).shape


# --- The notebook that readers run in this way


def test_the_bpe_notebook_runs_under_plain_exec_from_the_root(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    written = [ROOT / name for name in ("encoder.json", "vocab.bpe", "gpt2_model")]
    before = [path.exists() for path in written]
    names: dict = {"__name__": "bpe-from-scratch"}
    for number, cell in enumerate(nbformat.read(BPE_NOTEBOOK, as_version=4).cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"<cell {number}>", "exec"), names)
    plt.close("all")
    assert [path.exists() for path in written] == before
    assert names["BPETokenizerSimple"] is BPETokenizerSimple
    assert callable(names["download_file_if_absent"])


def test_the_bpe_notebook_as_a_module_has_what_readers_import():
    module = import_definitions_from_notebook(BPE_NOTEBOOK)
    assert module.__name__ == "bpe_from_scratch"
    assert module.BPETokenizerSimple is BPETokenizerSimple
    signature = inspect.signature(module.download_file_if_absent)
    assert list(signature.parameters) == ["url", "filename", "search_dirs"]


# --- Files by address


@pytest.fixture
def server(tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.log.append(self.path)
            if "missing" in self.path:
                return self.send_error(404)
            body = b"content of " + self.path.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.log, httpd.url = [], f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def test_a_file_is_downloaded_once(server, tmp_path):
    path = download_file(f"{server.url}/folder/my%20file.txt?raw=1", tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "my file.txt"
    assert path.read_bytes() == b"content of /folder/my%20file.txt?raw=1"
    path.write_bytes(b"mine")
    assert download_file(f"{server.url}/folder/my%20file.txt", str(path.parent)) == path
    assert path.read_bytes() == b"mine" and len(server.log) == 1


def test_the_default_folder_is_the_current_one(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert download_file(f"{server.url}/a.txt").resolve() == tmp_path.resolve() / "a.txt"


def test_a_failed_download_is_a_runtime_error_and_leaves_no_file(server, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="HTTP status 404.*(\n.*)*put the file at .*missing.txt"):
        download_file(f"{server.url}/missing.txt", tmp_path)
    monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
    with pytest.raises(RuntimeError, match="LLMS_FROM_SCRATCH_OFFLINE is set"):
        download_file(f"{server.url}/a.txt", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix == ".txt"] == []
    assert server.log == ["/missing.txt"]


@pytest.mark.parametrize("end", ["", "/", "/folder/", "/..", "/a%5C..%5C..%5Cb", "/C%3A%5Cb"])
def test_an_address_names_a_file_inside_the_folder(tmp_path, end):
    with pytest.raises(ValueError):
        download_file(f"http://127.0.0.1:9{end}", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_known_file_is_checked_by_its_hash(tmp_path, monkeypatch):
    mirror = tmp_path / "mirror" / "the-verdict" / "the-verdict.txt"
    mirror.parent.mkdir(parents=True)
    mirror.write_text("something else", encoding="utf-8")
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
    url = utils.ASSETS["the-verdict"].urls[0]
    with pytest.raises(DownloadError, match="another or a damaged file"):
        download_file(url, tmp_path)
    assert not (tmp_path / "the-verdict.txt").exists()


def test_an_absent_file_is_searched_for_and_downloaded_to_the_first_folder(
    server, tmp_path, capsys
):
    folders = [tmp_path / "a", str(tmp_path / "b")]
    path = download_file_if_absent(f"{server.url}/x.txt", "x.txt", folders)
    assert path == tmp_path / "a" / "x.txt" and path.is_file()
    (tmp_path / "b").mkdir()
    os.replace(path, tmp_path / "b" / "x.txt")
    found = download_file_if_absent(f"{server.url}/x.txt", "x.txt", folders)
    assert found == tmp_path / "b" / "x.txt"
    assert capsys.readouterr().out == "x.txt: fetched\nx.txt: found\n" and len(server.log) == 1
    missing = download_file_if_absent(f"{server.url}/missing.txt", "m.txt", folders)
    assert missing == tmp_path / "a" / "m.txt" and not missing.exists()
    assert "m.txt: could not be fetched\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match="search_dirs is empty"):
        download_file_if_absent(f"{server.url}/x.txt", "x.txt", [])


def test_openais_tables_are_there_without_a_network(tmp_path):
    names = ("encoder.json", "vocab.bpe")
    paths = [download_file_if_absent(f"{ADDRESS}/{n}", n, [tmp_path / "gpt2_model"]) for n in names]
    tokenizer = BPETokenizerSimple()
    tokenizer.load_vocab_and_merges_from_openai(*paths)
    assert len(tokenizer.vocab) == 50257
    assert tokenizer.encode("This is some text") == [1212, 318, 617, 2420]
