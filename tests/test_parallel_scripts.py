"""The training scripts under ``torchrun``, as a person types them; long ones with ``-m slow``."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from llms_from_scratch.app.run_folder import open_run_folder
from llms_from_scratch.training.sharded import newest, read_sharded_model

ROOT = Path(__file__).resolve().parent.parent
GPT_TRAIN = ROOT / "ch05/01_main-chapter-code/gpt_train.py"
PRETRAIN = ROOT / "ch05/03_bonus_pretraining_on_gutenberg/pretraining_simple.py"
TEXT = "The cat sat on the mat, and the dog lay by the door; neither of them moved. " * 120
SETTINGS = {
    "config": {
        "vocab_size": 50257,
        "context_length": 16,
        "emb_dim": 16,
        "n_heads": 2,
        "n_layers": 2,
        "drop_rate": 0.0,
        "qkv_bias": False,
    },
    "settings": {"learning_rate": 1e-3, "num_epochs": 1, "batch_size": 16, "weight_decay": 0.1},
}
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX, and gloo")


def start(cwd, size, script, *args):
    """Start a script, with ``torchrun`` if there is a number of processes."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(size), "--standalone"]
    return subprocess.Popen(
        [sys.executable, *(torchrun if size else []), script, *map(str, args)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"LLMS_FROM_SCRATCH_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


def run(cwd, size, script, *args):
    process = start(cwd, size, script, *args)
    printed, _ = process.communicate(timeout=900)
    return process.returncode, printed


def losses(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train-log.jsonl").open(encoding="utf-8")]


def assert_same_losses(one: Path, other: Path):
    ours, theirs = losses(one), losses(other)
    assert len(ours) == len(theirs) > 3
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys() and a["tokens_seen"] == b["tokens_seen"]
        assert all(abs(a[key] - b[key]) < 1e-5 for key in a), (a, b)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cat.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "books").mkdir()
    (tmp_path / "books/cat.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    return tmp_path


def test_gpt_train_under_torchrun_has_the_losses_of_one_process(folder):
    options = ["--settings", "settings.json", "--data", "cat.txt"]
    code, printed = run(folder, 0, GPT_TRAIN, *options, "--out", "one")
    assert code == 0, printed
    parallel = [*options, "--parallel", "fsdp", "--activation_checkpointing", "--out", "two"]
    code, printed = run(folder, 2, GPT_TRAIN, *parallel)
    assert code == 0, printed
    assert printed.count("Wrote model.pth") == 1  # one process speaks
    assert_same_losses(folder / "one", folder / "two")
    one, two = (torch.load(folder / f / "model.pth", weights_only=True) for f in ("one", "two"))
    assert all(
        (tensor - two[name]).abs().max() < 1e-4
        for name, tensor in one.items()
        if tensor.is_floating_point()
    )


@pytest.mark.parametrize(
    ("script", "mode", "message"),
    [
        (GPT_TRAIN, "pipeline", "invalid choice: 'pipeline'"),
        (PRETRAIN, "ddp", "--parallel ddp needs torchrun, which starts the processes"),
    ],
)
def test_a_way_to_share_the_work_that_cannot_be_is_one_line(folder, script, mode, message):
    code, printed = run(folder, 0, script, "--parallel", mode)
    assert code == 2 and message in printed and "Traceback" not in printed


@pytest.mark.parametrize(
    ("held", "parallel", "message"),
    [
        ("checkpoint-fsdp", None, "made with --parallel fsdp: resume it with torchrun and"),
        ("checkpoint-fsdp", "ddp", "made with --parallel fsdp: resume it with torchrun and"),
        ("checkpoint.pth", "fsdp", "made without --parallel fsdp: resume it without --parallel"),
        ("model.pth", "fsdp", "is finished, nothing is left to resume"),
    ],
)
def test_resuming_in_another_way_than_the_run_was_made_is_refused(
    tmp_path, held, parallel, message
):
    names = ("checkpoint.pth", "checkpoint-fsdp", "model.pth")
    (tmp_path / held).touch()
    with pytest.raises(ValueError, match=message):
        open_run_folder(tmp_path, names, resume=True, parallel=parallel)
    with pytest.raises(ValueError, match="holds the results of another run"):
        open_run_folder(tmp_path, names, parallel=parallel)


# Minutes


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_pretraining_is_the_same_for_any_number_of_processes_and_goes_on_in_any_other(folder, mode):
    options = ["--data_dir", "books", "--debug", "--eval_freq", 5]
    code, printed = run(folder, 0, PRETRAIN, *options, "--n_epochs", 2, "--output_dir", "one")
    assert code == 0, printed
    options += ["--parallel", mode, "--output_dir", "many"]
    assert run(folder, 2, PRETRAIN, *options)[0] == 0

    code, printed = run(folder, 2, PRETRAIN, *options)
    assert code != 0 and "holds the results of another run" in printed
    for changed, message in (
        (["--batch_size", 8], "settings differ: batch_size saved 4, wanted 8"),
        (["--seed", 5], "settings differ: seed saved 123, wanted 5"),
        (["--lr", 0.1], "settings differ: lr saved 0.0005, wanted 0.1"),
        (["--batch_size", 3], "a batch of 3 rows cannot be dealt evenly to 2 processes"),
    ):
        code, printed = run(folder, 2, PRETRAIN, *options, *changed, "--resume")
        assert code != 0 and message in printed

    code, printed = run(folder, 4, PRETRAIN, *options, "--n_epochs", 2, "--resume")
    assert code == 0, printed
    assert_same_losses(folder / "one", folder / "many")
    code, printed = run(folder, 2, PRETRAIN, *options, "--n_epochs", 2, "--resume")
    assert code == 0 and "was finished after" in printed


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_20_kills_cost_the_updates_since_the_last_checkpoint_and_never_a_checkpoint(folder, mode):
    options = ["--data_dir", "books", "--debug", "--n_epochs", 12, "--save_ckpt_freq", 5]
    options += ["--eval_freq", 50, "--parallel", mode]
    dice, every = random.Random(7), 5
    for kills in range(20):
        process = start(folder, 2, PRETRAIN, *options, "--output_dir", "killed", *resume(kills))
        kill_a_rank(process, folder / "killed", dice)
        logged = steps_logged(folder / "killed/train-log.jsonl")
        saved = steps_saved(folder / "killed", mode)
        assert saved >= (logged - 1) // every * every, (kills, logged, saved)
        assert saved > 0
    code, printed = run(folder, 2, PRETRAIN, *options, "--output_dir", "killed", "--resume")
    assert code == 0, printed
    code, printed = run(folder, 2, PRETRAIN, *options, "--output_dir", "straight")
    assert code == 0, printed
    logs = [(folder / f / "train-log.jsonl").read_text() for f in ("killed", "straight")]
    assert logs[0] == logs[1]
    weights = [
        torch.load(folder / f / "model_pg_final.pth", weights_only=True)
        for f in ("killed", "straight")
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def resume(kills: int) -> list[str]:
    return ["--resume"] if kills else []


def kill_a_rank(process, folder: Path, dice: random.Random) -> None:
    """Kill one rank, at a random moment after it has begun, or gone on, and has a checkpoint."""
    log = folder / "train-log.jsonl"
    written = log.stat().st_mtime_ns if log.exists() else 0
    wanted = (steps_logged(log) if log.exists() else 6) + dice.randint(0, 7)
    deadline = time.monotonic() + 200
    while not log.exists() or log.stat().st_mtime_ns == written or steps_logged(log) < wanted:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(dice.uniform(0, 0.1))
    ranks = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any("pretraining_simple" in part for part in child.cmdline())
    ]
    dice.choice(ranks).kill()
    process.communicate(timeout=100)
    assert process.returncode != 0


def steps_logged(log: Path) -> int:
    return len(log.read_text(encoding="utf-8").splitlines())


def steps_saved(folder: Path, mode: str) -> int:
    """The updates in the newest checkpoint, which is read whole."""
    if mode == "ddp":
        content = torch.load(folder / "checkpoint.pth", weights_only=True)
        return content["progress"]["step"]
    read_sharded_model(folder / "checkpoint-fsdp")
    return int(newest(folder / "checkpoint-fsdp").name[len("step-") :].split(".")[0])


READ_ALL = """
import sys
import psutil, torch
from pathlib import Path
from llms_from_scratch.training.data_order import deal
from llms_from_scratch.training.token_files import create_dataloaders
resident = lambda: psutil.Process().memory_info().rss
loader, _ = create_dataloaders([Path(sys.argv[1])], 0.98, 64, 256, 256, seed=1)
loader = deal(loader, rank=1, size=4)
batches = iter(loader)
next(batches)
before = most = resident()
for number, (inputs, targets) in enumerate(batches):
    assert inputs.shape == (16, 256)
    if number % 50 == 0:
        most = max(most, resident())
print(before, most, number)
"""


@pytest.mark.slow
def test_an_epoch_over_100_million_tokens_takes_no_more_memory_than_a_batch(tmp_path):
    path = tmp_path / "tokens.npy"
    tokens = np.lib.format.open_memmap(path, "w+", np.uint16, (100_000_000,))
    for part in np.array_split(np.arange(len(tokens)), 100):
        tokens[part] = part % 50257
    tokens.flush()
    del tokens
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, path], capture_output=True, text=True, check=True
    )
    before, most, batches = map(int, done.stdout.split())
    print(f"RSS {before / 1e6:.0f} MB, at most {most / 1e6:.0f} MB in {batches} batches")
    assert batches > 5_000
    assert most - before < 20e6  # the file has 200 MB
