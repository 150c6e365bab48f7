"""Every command in a README exists, takes the options shown, and runs or says why it is not run.

A block of commands is preceded by one of these comments:

    <!-- run -->                  the test suite runs it, in a copy of the repository
    <!-- not run: the reason -->  too long, or needs a network, a GPU, a program that is not here
    <!-- command: its name -->    run by continuous integration itself
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from repository import ROOT, relative, tracked_files
from scripts import run_script

TRACKED = tracked_files()
PAGES = [path for path in TRACKED if path.suffix == ".md" and ".zh-CN" not in path.name]
BLOCK = re.compile(r"(?:<!-- ([^\n]*?) -->\n)?```(?:bash|sh|shell|console)\n(.*?)```", re.DOTALL)
SYSTEM_COMMANDS = {
    "cd",
    "conda",
    "curl",
    "docker",
    "export",
    "git",
    "jupyter",
    "pip",
    "source",
    "uv",
}


@dataclass(frozen=True)
class Block:
    page: Path
    marker: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, without comments, variables in front, and ``uv run``."""
        found = []
        for line in self.text.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words[:2] == ["uv", "run"]:
                    words = words[2:]
                    while words[0].startswith("--"):
                        option = words.pop(0)
                        if option in ("--group", "--extra"):
                            words.pop(0)
                    if words[0].endswith(".py"):
                        words.insert(0, "python")
                if words:
                    found.append(words)
        return found


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page, marker or "", body) for marker, body in BLOCK.findall(text)]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def name_of(block: Block) -> str:
    return f"{relative(block.page)}:{blocks_of(block.page).index(block) + 1}"


@functools.cache
def help_of(*command: str) -> str:
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(words: list[str]) -> None:
    """Raise AssertionError if the command cannot be what is meant."""
    program, rest = words[0], words[1:]
    if program in ("python", "torchrun"):
        if rest[:1] == ["-m"]:
            assert find_spec(rest[1]) or rest[1] in ("pip", "venv", "uv"), f"no module {rest[1]}"
            return
        if rest[:1] == ["-c"]:
            compile(rest[1], "command", "exec")
            return
        position = next(i for i, word in enumerate(rest) if not word.startswith("-"))
        script = ROOT / rest[position]
        assert script.is_file(), f"no script {rest[position]} below the repository's top folder"
        explained = help_of(sys.executable, str(script))
        options = rest[position + 1 :]
    elif program == "llms-from-scratch":
        tool = (sys.executable, "-m", "llms_from_scratch.app.cli")
        explained = help_of(*tool, rest[0]) if not rest[0].startswith("-") else help_of(*tool)
        options = rest
    elif program in ("pytest", "ruff", "codespell", "check-jsonschema", "nbval", "jupytext"):
        return
    else:
        assert program in SYSTEM_COMMANDS, f"unknown command {program}"
        return
    for option in options:
        if re.match(r"--?[a-z]", option):
            option = option.partition("=")[0]
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", explained), f"no option {option}"


@pytest.mark.parametrize("block", BLOCKS, ids=name_of)
def test_commands_in_documents_exist_and_take_the_options_shown(block):
    for words in block.commands:
        check(words)


@pytest.mark.parametrize("block", BLOCKS, ids=name_of)
def test_blocks_of_commands_are_run_or_say_why_not(block):
    assert re.fullmatch(r"run|not run: .{5,}|command: .+", block.marker), (
        "put <!-- run --> or <!-- not run: the reason --> before the block"
    )


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    """What a reader who clones the repository has."""
    target = tmp_path_factory.mktemp("clone")
    for path in TRACKED:
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return target


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.marker == "run"], ids=name_of)
def test_marked_commands_run_from_the_top_folder(block, clone):
    scripts = str(Path(sys.executable).parent)
    environment = {
        "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
        "LLMS_FROM_SCRATCH_OFFLINE": "1",
    }
    for words in block.commands:
        if words[0] == "python" and not words[1].startswith("-"):
            done = run_script(*words[1:], cwd=clone, env=environment)
        else:
            if words[0] == "python":
                words = [sys.executable, *words[1:]]
            if words[0] == "llms-from-scratch":
                words = [sys.executable, "-m", "llms_from_scratch.app.cli", *words[1:]]
            done = subprocess.run(
                words,
                cwd=clone,
                env=os.environ | environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


# --- The checks see what they should see ---


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python gpt_train.py", "no script gpt_train.py below the repository's top folder"),
        ("python ch05/01_main-chapter-code/gpt_trian.py", "no script"),
        ("python ch05/01_main-chapter-code/gpt_train.py --persent tiny", "no option --persent"),
        ("uv run llms-from-scratch copy GPTModel --outptu x.py", "no option --outptu"),
        ("python -m llms_from_scratch.clii", "no module"),
        ("gpt_train.py", "unknown command"),
    ],
)
def test_a_command_that_cannot_run_is_found(command, message):
    page = ROOT / "ch05" / "01_main-chapter-code" / "README.md"
    (words,) = Block(page, "run", command).commands
    with pytest.raises(AssertionError, match=message):
        check(words)
