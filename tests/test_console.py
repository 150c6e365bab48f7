"""What scripts and commands print: UTF-8 in files, one line for what a user can mend."""

import argparse
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llms_from_scratch.app import console
from llms_from_scratch.app.script_tools import short_errors, writable_folder

ROOT = Path(__file__).resolve().parent.parent
PRINT = """
import argparse
from llms_from_scratch.app.script_tools import short_errors
with short_errors(argparse.ArgumentParser()):
    print("Ġ é 汉字 🙂")
    raise ValueError("no 汉字")
"""
OLD_WINDOWS = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}


def test_files_and_pipes_are_utf8_whatever_the_consoles_encoding():
    done = subprocess.run(
        [sys.executable, "-c", PRINT], capture_output=True, env=os.environ | OLD_WINDOWS
    )
    assert done.returncode == 2
    assert done.stdout.decode("utf-8").rstrip() == "Ġ é 汉字 🙂"
    assert done.stderr.decode("utf-8").rstrip().endswith("error: no 汉字")


def test_a_redirected_copy_of_a_definition_is_the_same_program():
    command = [sys.executable, "-m", "llms_from_scratch.app.cli", "copy", "BPETokenizerSimple"]
    done = subprocess.run(command, capture_output=True, env=os.environ | OLD_WINDOWS, check=True)
    assert 'SPACE = "Ġ"' in done.stdout.decode("utf-8")


def test_a_console_keeps_its_encoding_and_shows_what_it_can(monkeypatch):
    screen = io.BytesIO()
    stream = io.TextIOWrapper(screen, encoding="cp1252")
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    console.tolerate_any_console()
    print("é汉", flush=True)
    assert screen.getvalue().rstrip() == "é?".encode("cp1252")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "a"), "a: permission denied: change its mode"),
        (IsADirectoryError(21, "Is a directory", "a"), "a: is a folder, but a file is needed"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "a/b: a part of this path is a file"),
        (FileNotFoundError(2, "No such file or directory", "a"), "a: there is no such file"),
        (FileNotFoundError(2, "its folder does not exist", "a/b"), "a/b: its folder does not"),
        (OSError(28, "No space left on device", "a"), "a: the disk is full"),
        (OSError(5, "Input/output error", "a"), "a: Input/output error"),
        (FileNotFoundError("there is no notebook a"), "there is no notebook a"),
        (ValueError("b is 3"), "b is 3"),
    ],
)
def test_what_a_user_can_mend_is_one_line_with_exit_code_2(capsys, error, line):
    with pytest.raises(SystemExit) as end, short_errors(argparse.ArgumentParser(prog="script")):
        raise error
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"script: error: {line}") and shown.count("\n") == 1
    assert "Errno" not in shown


def test_a_reader_who_has_seen_enough_is_no_error():
    script = PRINT.replace('print("', 'for _ in range(100_000): print("').replace("raise", "#")
    command = f"\"{sys.executable}\" -c '{script.replace(chr(39), '')}' | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.mark.parametrize("name", ["", "file", "file/below"])
def test_a_folder_that_cannot_be_written_is_refused_with_the_reason(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is empty: give one|choose another folder"):
        writable_folder(name)


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
@pytest.mark.parametrize(
    "command",
    [
        [str(ROOT / "ch05/01_main-chapter-code/gpt_generate.py")],
        ["-m", "llms_from_scratch.app.cli", "convert", "gpt2-tiny", "nowhere.pth"],
    ],
    ids=["script", "command"],
)
def test_ctrl_c_while_libraries_are_loaded_shows_no_traceback(command, tmp_path):
    """A stand-in for torch takes its time, as the real one does on a slow disk."""
    (tmp_path / "torch.py").write_text("import time; print('loading', flush=True); time.sleep(60)")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in errors
