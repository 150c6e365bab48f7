"""The scripts of chapter 7's bonus folders."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import run_script
from sklearn.feature_extraction.text import TfidfVectorizer

from llms_from_scratch.ch07 import load_entries
from llms_from_scratch.data import SAMPLES

CH07 = Path(__file__).resolve().parent.parent / "ch07"
FIND = CH07 / "02_dataset-utilities" / "find-near-duplicates.py"
DPO = CH07 / "04_preference-tuning-with-dpo" / "dpo_finetuning.py"


@pytest.fixture(scope="module")
def finder() -> dict:
    return runpy.run_path(str(FIND))


def entry(instruction: str, output: str = "") -> dict:
    return {"instruction": instruction, "input": "", "output": output}


@pytest.mark.parametrize("threshold", [0.6, 0.9])
def test_pairs_and_scores_are_those_of_all_cosines(finder, threshold):
    data = load_entries(SAMPLES / "instruction-data-synthetic.json")[:700]  # more than a block
    texts = [finder["preprocess_text"](e["instruction"]) for e in data]
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3)).fit_transform(
        list(dict.fromkeys(texts))
    )
    cosines = (vectors @ vectors.T).toarray()
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    kept, pairs = finder["find_near_duplicates"](data, threshold)
    found = {
        place[finder["preprocess_text"](e["instruction"])] for a, b, _ in pairs for e in (a, b)
    }
    wanted = {
        (i, j): cosines[i, j]
        for i in range(len(place))
        for j in range(i)
        if cosines[i, j] > threshold
    }
    assert {i for pair in wanted for i in pair} <= found
    for a, b, score in pairs:
        i, j = (place[finder["preprocess_text"](e["instruction"])] for e in (a, b))
        assert score == pytest.approx(cosines[i, j], abs=1e-4)
    remaining = {id(e) for e in kept}
    assert not any(id(a) in remaining and id(b) in remaining for a, b, _ in pairs)


def test_one_entry_of_each_group_is_kept(finder):
    data = [
        entry(text) for text in ("Name a dog.", "Add two.", "name a dog", "Name a dog!", "", "")
    ]
    kept, pairs = finder["find_near_duplicates"](data)
    assert [e["instruction"] for e in kept] == ["Name a dog.", "Add two.", "", ""]
    assert [score for *_, score in pairs] == [1.0, 1.0]
    assert finder["find_near_duplicates"](data, key="output") == (data, [])
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        finder["find_near_duplicates"](data, 2)


def test_the_script_writes_what_is_left(tmp_path):
    path, out = tmp_path / "entries.json", tmp_path / "clean.json"
    data = [entry("a dog", "It is é."), entry("a cat", "It is é!"), entry("a fox", "No.")]
    path.write_text(json.dumps(data), encoding="utf-8")
    done = run_script(FIND, "--json_file", path, "--remove_duplicates", cwd=tmp_path)
    assert done.returncode == 2 and "needs a --json_output_file" in done.stderr
    done = run_script(
        FIND, "--json_file", path, "--remove_duplicates", "--json_output_file", out, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text(encoding="utf-8")) == [data[0], data[2]]
    assert "output: 1 pairs above 0.90" in done.stdout


@pytest.mark.real_data
def test_the_scores_are_those_of_the_book(finder):
    path = Path(os.environ["LLMS_FROM_SCRATCH_MIRROR"]) / "instruction-data"
    if not (path / "instruction-examples.json").is_file():
        pytest.skip("the mirror has no instruction-data/instruction-examples.json")
    data = load_entries(path / "instruction-examples.json")
    scores = {
        key: [round(score, 2) for *_, score in finder["find_near_duplicates"](data, 0.9, key)[1]]
        for key in ("instruction", "input", "output")
    }
    assert scores == {"instruction": [0.94, 1.0, 0.91], "input": [], "output": [1.0]}


def test_dpo_runs_stops_and_goes_on_to_the_same_numbers(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--preset", "tiny", "--batch-size", "2", "--device", "cpu", "--epochs", "2"]
    done = run_script(DPO, *options, "--out", whole, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((whole / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["updates"] == 8 and len(metrics["history"]) == 2
    assert metrics["after"]["all"][1] == 8
    assert {path.name for path in whole.iterdir()} >= {"model.pth", "dpo-plot.png", "answers.json"}

    process = subprocess.Popen(
        [sys.executable, str(DPO), *options, "--out", str(parts)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    seen = b""
    while b"step/s, loss" not in seen and b"s/step, loss" not in seen:
        piece = process.stderr.read1(4096)
        assert piece, seen.decode()
        seen += piece
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert (parts / "checkpoint.pth").is_file()
    assert "--resume continues it" in run_script(DPO, *options, "--out", parts, cwd=tmp_path).stderr
    done = run_script(DPO, *options, "--out", parts, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    resumed = json.loads((parts / "metrics.json").read_text(encoding="utf-8"))
    assert resumed["history"] == metrics["history"]
    assert resumed["after"] == metrics["after"]
