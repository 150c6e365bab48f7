"""The continuous-integration files are valid, pinned, modest in rights, and name what exists."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from repository import ROOT, relative, tracked_files

from llms_from_scratch.data import ASSETS

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
all_workflows = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def steps_of(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_there_are_jobs_for_three_systems_old_and_new_versions_and_a_gpu():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    rows = workflow["jobs"]["cpu"]["strategy"]["matrix"]["include"]
    assert {row["os"].split("-")[0] for row in rows} == {"ubuntu", "windows", "macos"}
    minimum = re.search(r'requires-python = ">=(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    oldest = [row for row in rows if row["python"] == minimum[1]]
    torch = re.search(r'"torch>=(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert [row["torch"] for row in oldest] == [f"=={torch[1]}.*"]
    assert "GPU_RUNNER" in workflow["jobs"]["cuda"]["runs-on"]


@all_workflows
def test_workflow_follows_githubs_schema(path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema"),
            *("--builtin-schema", "vendor.github-workflows", str(path)),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@all_workflows
def test_workflow_pins_its_actions_and_has_few_rights(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "concurrency" in workflow
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
    for step in steps_of(path):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
            assert re.search(rf"{step['uses']}  # v\d", text), "say which version the hash is"
    assert "pull_request_target" not in text
    assert not re.search(r"run:.*\$\{\{ *github\.(event|head)", text)  # nobody's text in a shell


@all_workflows
def test_paths_and_programs_of_workflow_commands_exist(path):
    known = {"python", "uv", "ruff", "codespell", "check-jsonschema", "llms-from-scratch", "git"}
    for step in steps_of(path):
        for line in step.get("run", "").splitlines():
            program = line.split()[0]
            assert Path(program).name in known, line
            for asset in re.findall(r"llms-from-scratch data (\S+) --fetch", line):
                assert any(name.startswith(asset) for name in ASSETS), asset
            for word in re.findall(r"(?<![\w.])(?:tools|tests|setup|\.github)/[\w./*-]+", line):
                assert list(ROOT.glob(word)), f"{word} does not exist"


@pytest.mark.parametrize(
    "name", ["ISSUE_TEMPLATE/bug-report.yaml", "ISSUE_TEMPLATE/ask-a-question.md"]
)
def test_issue_templates_exist_and_the_bug_form_asks_for_the_environment(name):
    text = (ROOT / ".github" / name).read_text(encoding="utf-8")
    assert "labels:" in text
    if name.endswith(".yaml"):
        ids = [part.get("id") for part in yaml.safe_load(text)["body"]]
        wanted = ["bug_description", "operating_system", "compute_environment", "environment"]
        assert ids == wanted
        assert "python_environment_check.py" in text


def test_no_word_is_misspelt():
    """Spelling of all text and code, as the lint job checks it."""
    program = shutil.which("codespell", path=str(Path(sys.executable).parent))
    files = [relative(path) for path in tracked_files()]
    done = subprocess.run([program, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
