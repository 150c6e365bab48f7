"""The environment check says what is there and what is missing, on any machine."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "setup" / "02_installing-python-libraries"
SCRIPT = FOLDER / "python_environment_check.py"


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location("python_environment_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_this_environment_passes(check, capsys, monkeypatch):
    monkeypatch.setattr(check, "MINIMUM_DISK_GB", 0)
    monkeypatch.setattr(check, "MINIMUM_MEMORY_GB", 0)
    monkeypatch.setattr(sys, "argv", ["check", "--offline"])
    assert check.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("[OK] ", "[--] ")) for line in lines)
    assert any(line.startswith("[OK] torch ") for line in lines)
    assert any(line.startswith("[OK] device cpu ") for line in lines)


def test_old_missing_and_optional_packages_are_told_apart(check, capsys, monkeypatch):
    installed = {"torch": "2.5.1", "numpy": "2.0.0rc1"}

    def version(name):
        if name not in installed:
            raise check.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(check.metadata, "version", version)
    check.check_packages(
        {"torch": ">=2.6", "numpy": ">=1.26", "pandas": ">=2.2", "tensorflow": ">=2.18"}
    )
    assert capsys.readouterr().out.splitlines() == [
        "[FAIL] torch 2.5.1, please install torch>=2.6",
        "[OK] numpy 2.0.0rc1",
        "[FAIL] pandas is not installed, please install pandas>=2.2",
        "[--] tensorflow is not installed, please install tensorflow>=2.18",
    ]
    assert check.failures == 2


def test_requirements_are_those_of_the_file_whose_condition_holds(check, monkeypatch, tmp_path):
    here = tmp_path / "a" / "b" / "check.py"
    monkeypatch.setattr(check, "__file__", str(here))
    (tmp_path / "requirements.txt").write_text(
        "# comment\nTorch >= 2.6  # all chapters\n\nold; python_version < '3'\n", encoding="utf-8"
    )
    assert check.get_requirements_dict() == {"torch": ">=2.6"}
    (tmp_path / "requirements.txt").unlink()
    with pytest.raises(FileNotFoundError, match="requirements.txt"):
        check.get_requirements_dict()


def test_a_python_without_any_package_gets_advice_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT, "--offline"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert "pip install -r requirements.txt" in done.stdout
    assert "pip install -e ." in done.stdout


def test_sources_that_cannot_be_reached_are_no_failure_and_name_the_way_out(check, capsys):
    check.check_sources(timeout=1)  # the test suite has no network
    lines = capsys.readouterr().out.splitlines()
    hosts = [line for line in lines if "cannot be reached" in line]
    assert len(hosts) >= 4
    assert all(line.startswith("[--] ") and "setup/README.md" in line for line in hosts)
    assert check.failures == 0
