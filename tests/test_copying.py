"""``llms-from-scratch copy``: every definition, alone in a file, does what it does here."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from repository import tracked_files

from llms_from_scratch.app.cli import main as cli
from llms_from_scratch.app.copying import (
    CannotCopyError,
    can_be_copied,
    collect,
    needs,
    rename,
    standalone,
)
from llms_from_scratch.app.source_index import (
    UnknownNameError,
    find,
    listed_definitions,
    package,
    public_definitions,
)
from llms_from_scratch.tokenizer import seed_tiktoken_cache

ROOT = Path(__file__).resolve().parent.parent

# What is a file that lies in the package, or reads one; what needs these cannot be copied either
ROOTS = {"SAMPLES", "BUNDLED", "vocab_bpe"}

# Runs in a process in which the package cannot be imported. Each scenario gets a way to names, and
# returns tensors and numbers that must be the same bits as with the package.
SCENARIOS = """
import sys, runpy, torch

CONFIG = {"vocab_size": 50257, "context_length": 8, "emb_dim": 16, "n_heads": 2, "n_layers": 2,
          "drop_rate": 0.1, "qkv_bias": True}
TEXT = "A quick brown fox jumps over the lazy dog; the dog, being lazy, lets it pass. " * 6

def seeded(ns, name, *args, **options):
    torch.manual_seed(123)
    return ns[name](*args, **options)

def ids():
    return torch.randint(0, 50257, (2, 8), generator=torch.Generator().manual_seed(0))

def attention(ns, name, *args):
    return seeded(ns, name, *args)(torch.ones(2, 5, 6).cumsum(1))

def train(ns):
    model = seeded(ns, "GPTModel", CONFIG)
    loader = ns["create_dataloader_v1"](TEXT, 2, 8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(1)
    losses = ns["train_model_simple"](model, loader, loader, optimizer, "cpu", 1, 3, 1, "A quick",
                                      ns["get_tokenizer"]())
    return losses, model.state_dict()

def train_again(ns):
    model = seeded(ns, "GPTModel", CONFIG)
    loader = ns["create_dataloader_v1"](TEXT, 2, 8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(1)
    trainer = ns["Trainer"](model, optimizer, loader, loader, "cpu", num_epochs=1, eval_freq=3,
                            eval_iter=1, accumulate=2)
    trainer.run()
    return trainer.progress.step_losses, model.state_dict()

def lora(ns):
    model = seeded(ns, "GPTModel", CONFIG).eval()
    ns["replace_linear_with_lora"](model, 2, 4)
    for tensor in ns["lora_state_dict"](model).values():
        tensor.fill_(0.01)
    ns["merge_lora"](model)
    return model(ids())

SCENARIOS = {
    "SelfAttention_v1": lambda ns: seeded(ns, "SelfAttention_v1", 6, 4)(torch.ones(5, 6)),
    "SelfAttention_v2": lambda ns: seeded(ns, "SelfAttention_v2", 6, 4)(torch.ones(5, 6)),
    "CausalAttention": lambda ns: attention(ns, "CausalAttention", 6, 4, 5, 0.1),
    "MultiHeadAttentionWrapper": lambda ns: attention(
        ns, "MultiHeadAttentionWrapper", 6, 4, 5, 0.1, 2),
    "MultiHeadAttention": lambda ns: attention(ns, "MultiHeadAttention", 6, 4, 5, 0.1, 2),
    "PyTorchMultiHeadAttention": lambda ns: attention(
        ns, "PyTorchMultiHeadAttention", 6, 4, 2, 0.1),
    "GPTModel": lambda ns: seeded(ns, "GPTModel", CONFIG)(ids()),
    "GPTModelFast": lambda ns: seeded(ns, "GPTModelFast", CONFIG)(ids()),
    "SimpleTokenizerV2": lambda ns: ns["SimpleTokenizerV2"]({"a": 0, "<|unk|>": 1}).encode("a, b"),
    "create_dataloader_v1": lambda ns: list(seeded(ns, "create_dataloader_v1", TEXT, 2, 8, 4)),
    "calc_loss_batch GPTModel": lambda ns: ns[LOSS](
        ids(), ids().flip(0), seeded(ns, "GPTModel", CONFIG), "cpu"),
    "generate GPTModel": lambda ns: seeded(
        ns, "generate", seeded(ns, "GPTModel", CONFIG).eval(), ids(), 5, 8,
        temperature=1.0, top_k=20, top_p=0.9),
    "generate_text_simple GPTModel": lambda ns: ns["generate_text_simple"](
        seeded(ns, "GPTModel", CONFIG).eval(), ids(), 5, 8),
    "train_model_simple GPTModel create_dataloader_v1 get_tokenizer": train,
    "Trainer GPTModel create_dataloader_v1": train_again,
    "replace_linear_with_lora GPTModel lora_state_dict merge_lora": lora,
    "learning_rate": lambda ns: [ns["learning_rate"](s, 9, 3, 0.1, 1.0, 0.2) for s in range(9)],
}
LOSS = "calc_loss_batch"

def run_scenario(names, ns):
    return SCENARIOS[names](ns)
"""
RUNNER = """
import sys, runpy, torch
sys.modules["llms_from_scratch"] = None  # any import of the package fails
exec(open(sys.argv[1], encoding="utf-8").read())
results = {}
for names in SCENARIOS:
    path = sys.argv[2] + "/" + names.replace(" ", "+") + ".py"
    results[names] = run_scenario(names, runpy.run_path(path))
everything = runpy.run_path(sys.argv[2] + "/all.py")
results["all"] = {names: run_scenario(names, everything) for names in SCENARIOS}
torch.save(results, sys.argv[3])
"""
IMPORT_ALL = """
import pathlib, runpy, sys, traceback
sys.modules["llms_from_scratch"] = None
failed = []
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.py")):
    try:
        namespace = runpy.run_path(str(path))
        assert path.stem in namespace or path.stem == "all", path.stem
    except Exception:
        failed.append(path.name + traceback.format_exc())
sys.exit("".join(failed) or 0)
"""


def is_carried(definition) -> bool:
    """Whether a definition needs none of the package's files, found without ``copying``'s word."""
    seen, open_names = set(), [definition]
    while open_names:
        one = open_names.pop()
        if one.name in ROOTS:
            return False
        if one not in seen:
            seen.add(one)
            try:
                open_names += needs(one)[0].values()
            except CannotCopyError as error:
                assert "is a program" in str(error)
                return False
    return True


def qualified(definition) -> str:
    return definition.dotted_name.removeprefix("llms_from_scratch.")


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    """A file for each public definition that can be copied, and one with all of them."""
    folder = tmp_path_factory.mktemp("copies")
    names = []
    for definition in public_definitions():
        if is_carried(definition):
            names.append(qualified(definition))
            path = folder / definition.module / f"{definition.name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(standalone([names[-1]]), encoding="utf-8")
    (folder / "all").mkdir()
    (folder / "all/all.py").write_text(standalone(names), encoding="utf-8")
    return folder


def test_every_public_name_is_copied_or_refused_with_the_reason():
    for definition in public_definitions():
        if is_carried(definition):
            assert collect([definition])[-1] == definition and can_be_copied(definition)
            continue
        assert not can_be_copied(definition)
        way_out = f"import it instead, .*from {definition.module} import {definition.name}$"
        with pytest.raises(CannotCopyError, match=f"(inside of|lies in) this package; {way_out}"):
            standalone([qualified(definition)])


def test_every_copy_passes_ruff(copies):
    config = ROOT / "pyproject.toml"
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", config, "."],
            cwd=copies,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_every_copy_runs_where_the_package_cannot_be_imported(copies):
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, copies], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_copies_give_the_same_bits_as_the_package(tmp_path):
    scenarios = {}
    exec(SCENARIOS, scenarios)
    everything = [qualified(d) for d in public_definitions() if is_carried(d)]
    (tmp_path / "scenarios.py").write_text(SCENARIOS, encoding="utf-8")
    for names in scenarios["SCENARIOS"]:
        wanted = [n if n != "calc_loss_batch" else "ch05.calc_loss_batch" for n in names.split()]
        path = tmp_path / f"{names.replace(' ', '+')}.py"
        path.write_text(standalone(wanted), encoding="utf-8")
    (tmp_path / "all.py").write_text(standalone(everything), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            RUNNER,
            tmp_path / "scenarios.py",
            tmp_path,
            tmp_path / "results.pt",
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ
        | {
            "TIKTOKEN_CACHE_DIR": str(seed_tiktoken_cache(tmp_path / "tiktoken")),
            "OMP_NUM_THREADS": "1",
            "PYTHONIOENCODING": "utf-8",  # a copy prints samples as they are
        },
    )
    assert done.returncode == 0, done.stderr
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    namespace = {}
    for module in reversed(package()):
        exec(f"from {module} import *", namespace)
    for name in ("calc_loss_batch", "generate", "train_model_simple"):
        namespace[name] = getattr(sys.modules["llms_from_scratch.ch05"], name)
    for d in public_definitions():
        namespace.setdefault(d.name, getattr(sys.modules[d.module], d.name))
    for names in scenarios["SCENARIOS"]:
        wanted = scenarios["run_scenario"](names, namespace)
        assert equal(results[names], wanted), names
        assert equal(results["all"][names], wanted), f"{names}, all names in one file"


def test_names_are_found_dotted_or_plain_and_typing_errors_are_met_with_proposals():
    assert find("GPTModel") == find("ch04.GPTModel") == find("llms_from_scratch.ch04.GPTModel")
    with pytest.raises(ValueError, match="there is no 'GPTModle' .* did you mean GPTModel"):
        find("GPTModle")
    assert find("generate") == find("ch05.generate")  # not that of generate.py: the chapter's
    names = [d.name for d in public_definitions()]
    in_chapters = [d.name for d in public_definitions() if ".ch0" in d.module]
    for name in {n for n in names if names.count(n) > 1 and in_chapters.count(n) != 1}:
        with pytest.raises(
            ValueError, match=f"{name!r} exists {names.count(name)} times; say which"
        ):
            find(name)


def test_a_copy_reads_from_top_to_bottom_with_its_comments():
    text = standalone(["MultiHeadAttention"])
    assert text.startswith("# MultiHeadAttention\n# Copied from llms_from_scratch ")
    assert text.splitlines()[2] == "# Licence: Apache License 2.0"
    assert "self.out_proj = nn.Linear(d_out, d_out)  # lets the heads mix" in text
    whole = standalone(["GPTModel"])
    order = [
        whole.index(f"class {name}")
        for name in ("MultiHeadAttention", "TransformerBlock", "GPTModel")
    ]
    assert order == sorted(order)


def test_renaming_changes_names_but_no_strings_comments_or_attributes():
    source = 'def f(x: f) -> "f":\n    """f"""\n    # é f\n    return é(f(x).f, f="f")'
    wanted = 'def g(x: g) -> "f":\n    """f"""\n    # é f\n    return é(g(x).f, f="f")'
    assert rename(source, {"f": "g"}) == wanted


def test_command_prints_or_writes_and_never_overwrites_unasked(tmp_path, capsys):
    assert cli(["copy", "GELU"]) == 0
    printed = capsys.readouterr()
    assert "class GELU(nn.Module):" in printed.out and printed.err == "It needs: torch\n"
    target = tmp_path / "gelu.py"
    assert cli(["copy", "GELU", "-o", str(target)]) == 0
    assert target.read_text(encoding="utf-8") == printed.out
    target.write_text("mine", encoding="utf-8")
    for arguments, message in (
        (["copy", "GELU", "-o", str(target)], "exists: choose another name, or add --force"),
        (["copy", "GELUU"], "did you mean GELU"),
        (["copy", "choose_pretrained"], "cannot be copied"),
        (["copy"], "give one or more names"),
    ):
        with pytest.raises(SystemExit) as error:
            cli(arguments)
        assert error.value.code == 2 and message in capsys.readouterr().err
    assert target.read_text(encoding="utf-8") == "mine"
    assert cli(["copy", "GELU", "-o", str(target), "--force"]) == 0
    assert target.read_text(encoding="utf-8") == printed.out


def test_list_shows_classes_and_functions_by_chapter_with_names_that_are_found(capsys):
    assert cli(["copy", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rooms = [line for line in lines if line.startswith("llms_from_scratch")]
    assert rooms[:3] == [f"llms_from_scratch.ch0{i}" for i in (2, 3, 4)]
    assert not [room for room in rooms if room.startswith("llms_from_scratch.app.")]
    shown = [line for line in lines if line.startswith("  ")]
    assert len(shown) == len(listed_definitions()) > 200
    for line in shown:
        name, summary = line.split(maxsplit=1)
        definition = find(name)
        assert not definition.is_constant and summary.strip()
        assert line.endswith("[only to import]") != is_carried(definition)
    names = {line.split()[0] for line in shown}
    assert {"GPTModel", "qwen3.load_weights_into_qwen", "SPACE"} & names == {"GPTModel"}
    assert {"generate", "llama3.RMSNorm"} & names == {"generate"}


@pytest.mark.parametrize(
    ("name", "proposal"),
    [
        ("gptmodel", r"did you mean GPTModel\?"),
        ("GPTMODEL", r"did you mean GPTModel\?"),
        ("ch04.gptmodel", r"did you mean GPTModel\?"),
        ("GPT", "did you mean .*GPTModel"),
        ("SelfAttention", "did you mean .*SelfAttention_v1"),
        ("ch04", "that is a module, name one of its definitions: .*LayerNorm"),
        ("CH04", "that is a module"),
        ("kv_cache.gpt2", "that is a module, .*GPTModel"),
        ("xyzzy", "--list shows all names"),
        ("", "--list shows all names|did you mean|is a module"),
    ],
)
def test_what_is_not_found_is_met_with_a_useful_proposal(name, proposal):
    with pytest.raises(UnknownNameError, match=proposal):
        find(name)


@given(st.sampled_from([d.name for d in public_definitions() if not d.is_constant]), st.data())
def test_a_name_in_another_case_leads_to_the_name(name, data):
    typed = data.draw(st.sampled_from([name.lower(), name.upper(), name.title(), name.swapcase()]))
    try:
        assert find(typed).name == typed
    except UnknownNameError as error:
        assert "exists" in str(error) or "did you mean" in str(error) or "module" in str(error)


IMPORT_LINE = re.compile(r"^from (llms_from_scratch[\w.]*) import ([\w, ]+)$", re.MULTILINE)


def test_each_name_that_a_page_tells_to_import_is_found_by_its_place():
    pages = [p for p in tracked_files() if p.suffix == ".md"]
    wanted = set()
    for page in pages:
        for module, names in IMPORT_LINE.findall(page.read_text(encoding="utf-8")):
            wanted |= {(module, name.strip()) for name in names.split(",")}
    assert ("llms_from_scratch.kv_cache.gpt2", "GPTModel") in wanted
    for module, name in wanted:
        if f"{module}.{name}" not in package():  # a module as a whole
            found = find(f"{module.removeprefix('llms_from_scratch.')}.{name}")
            named = getattr(importlib.import_module(module), name)
            assert named is getattr(importlib.import_module(found.module), found.name)


def test_a_copy_under_another_name_says_so():
    text = standalone(["kv_cache.gpt2.GPTModel"])
    assert "# kv_cache.gpt2.GPTModel is CachedGPTModel below\n" in text


def test_no_message_of_a_copy_sends_its_reader_into_the_package():
    marks = {"llms-from-scratch BPE 1", "llms_from_scratch checkpoint", "llms-from-scratch"}
    for module in package().values():
        for definition in module.definitions.values():
            is_program = definition.module.startswith("llms_from_scratch.app.")
            if is_program or not can_be_copied(definition):
                continue
            tree = ast.parse(definition.source)
            docstrings = [ast.get_docstring(n, clean=False) for n in ast.walk(tree) if has_doc(n)]
            for node in ast.walk(tree):
                text = node.value if isinstance(node, ast.Constant) else None
                if isinstance(text, str) and text not in docstrings and text not in marks:
                    assert "llms_from_scratch." not in text, definition.dotted_name


def has_doc(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef)


def test_a_copy_that_needs_a_network_says_so(capsys, tmp_path):
    assert cli(["copy", "create_dataloader_v1", "-o", str(tmp_path / "copy.py")]) == 0
    assert "a network once: tiktoken downloads" in capsys.readouterr().err
    assert cli(["copy", "GELU"]) == 0
    assert "network" not in capsys.readouterr().err


def test_the_readmes_show_the_first_lines_of_a_real_copy():
    text = standalone(["GPTModel", "generate"])
    for page in ("README.md", "README.zh-CN.md"):
        content = (ROOT / page).read_text(encoding="utf-8")
        start = content.index("# GPTModel, generate")
        shown = content[start : content.index("```", start)]
        assert text.startswith(shown)
