"""Several processes train as one would: the same losses, checkpoints for any number of them."""

import contextlib
import os
import pickle
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parallel_runs import CONFIG, new_trainer, run_together, train, write_tokens
from torch.multiprocessing import ProcessExitedException
from torch.utils.data import BatchSampler

from llms_from_scratch.app.cli import main
from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.training.checkpoint import CheckpointError
from llms_from_scratch.training.data_order import RankBatches, SeededOrder
from llms_from_scratch.training.distributed import free_port
from llms_from_scratch.training.parallel import Alone, check_divisible, join, leave
from llms_from_scratch.training.plan import PlannedRun, memory
from llms_from_scratch.training.sharded import newest, read_sharded_model
from llms_from_scratch.training.token_files import TokenFileDataset
from llms_from_scratch.weights.pretrained import load_pretrained

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tests fork processes")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The results of all runs, by name, and the folder with their checkpoints."""
    folder = tmp_path_factory.mktemp("parallel")
    write_tokens(folder / "tokens.npy")
    done = {
        "alone": train(Alone(), folder, "alone"),
        "alone-shuffled": train(Alone(), folder, "alone-shuffled", seeded=False),
        "alone-tied": train(Alone(), folder, "alone-tied", tied=True),
    }
    both = [
        {"name": f"{mode}-{kind}", "mode": mode, **options}
        for mode in ("ddp", "fsdp")
        for kind, options in {
            "2": {},
            "2-shuffled": {"seeded": False},
            "2-straight": {"drop_rate": 0.1},
            "2-again": {"drop_rate": 0.1, "max_steps": 5},
            "2-cut": {"max_steps": 5},
            "2-sums-of-1": {"max_steps": 2, "accumulate": 1, "count_sums": True},
            "2-sums-of-3": {"max_steps": 2, "accumulate": 3, "count_sums": True},
        }.items()
    ]
    both += [
        {"name": f"{mode}-2-again", "mode": mode, "drop_rate": 0.1, "resume": True}
        for mode in ("ddp", "fsdp")
    ]
    both += [
        {"name": "fsdp-2-tied", "mode": "fsdp", "tied": True},
        {"name": "fsdp-2-less", "mode": "fsdp", "activation_checkpointing": True},
    ]
    done |= run_together(folder, 2, both)
    for mode, kind in (("ddp", "pth"), ("fsdp", "fsdp")):
        for size in (1, 4):
            copy = shutil.copytree if mode == "fsdp" else shutil.copyfile
            copy(folder / f"{mode}-2-cut.{kind}", folder / f"{mode}-{size}-resumed.{kind}")
    for size in (1, 4):
        options = [
            {"name": f"{mode}-{size}{kind}", "mode": mode, "resume": bool(kind)}
            for mode in ("ddp", "fsdp")
            for kind in ("", "-resumed")
        ]
        done |= run_together(folder, size, options)
    return done, folder


def distance(one: dict, other: dict) -> float:
    """The largest difference between two runs' losses."""
    pairs = [
        (a, b)
        for mine, theirs in zip(one["losses"], other["losses"], strict=True)
        for a, b in zip(mine, theirs, strict=True)
    ]
    return max(abs(a - b) for a, b in pairs)


def weight_distance(one: dict, other: dict) -> float:
    names = one["weights"].keys() | other["weights"].keys()
    pairs = [(one["weights"][name], other["weights"][name]) for name in names]
    return max((a.float() - b.float()).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_any_number_of_processes_has_the_losses_of_one(runs, mode, size):
    done, _ = runs
    assert len(done["alone"]["losses"][0]) == 8
    assert distance(done["alone"], done[f"{mode}-{size}"]) < 1e-5
    assert done["alone"]["tokens"] == done[f"{mode}-{size}"]["tokens"]


def test_the_order_of_pytorchs_own_shuffling_is_shared_too(runs):
    done, _ = runs
    assert distance(done["alone"], done["alone-shuffled"]) > 1e-3
    for mode in ("ddp", "fsdp"):
        assert distance(done["alone-shuffled"], done[f"{mode}-2-shuffled"]) < 1e-5


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_a_run_that_is_resumed_by_as_many_processes_has_the_same_bits(runs, mode):
    """With dropout, between two updates of an epoch."""
    done, _ = runs
    straight, again = done[f"{mode}-2-straight"], done[f"{mode}-2-again"]
    assert distance(straight, done[f"{mode}-2"]) > 1e-3  # dropout was at work
    assert straight["losses"] == again["losses"]
    assert weight_distance(straight, again) == 0


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_a_run_of_two_processes_is_resumed_by_any_number(runs, mode, size):
    done, _ = runs
    straight, resumed = done[f"{mode}-2"], done[f"{mode}-{size}-resumed"]
    assert distance(straight, resumed) < 1e-6
    assert weight_distance(straight, resumed) < 1e-5
    assert straight["tokens"] == resumed["tokens"]


def test_one_process_goes_on_with_what_ddp_has_saved(runs):
    done, folder = runs
    shutil.copy(folder / "ddp-2-cut.pth", folder / "ddp-alone.pth")
    resumed = train(Alone(), folder, "ddp-alone", resume=True)
    assert distance(done["alone"], resumed) < 1e-6


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_each_process_keeps_what_the_plan_says(runs, mode, size):
    done, _ = runs
    planned = memory(PlannedRun(CONFIG, 8, mode, size))
    for purpose, measured in done[f"{mode}-{size}"]["bytes"].items():
        assert measured == pytest.approx(planned[purpose], rel=0.15), purpose


def test_tied_weights_stay_tied_in_parts(runs):
    done, _ = runs
    assert distance(done["alone-tied"], done["fsdp-2-tied"]) < 1e-5
    weights = done["fsdp-2-tied"]["weights"]
    assert torch.equal(weights["tok_emb.weight"], weights["out_head.weight"])


def test_activations_that_are_computed_again_change_no_loss(runs):
    done, _ = runs
    assert distance(done["fsdp-2"], done["fsdp-2-less"]) < 1e-6


def test_a_checkpoint_of_parts_is_converted_to_one_file_that_loads(runs, capsys):
    done, folder = runs
    target = folder / "converted" / "model.safetensors"
    target.parent.mkdir()
    assert main(["convert", str(folder / "fsdp-4.fsdp"), str(target)]) == 0
    model = load_pretrained(target).model
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, done["fsdp-4"]["weights"][name]), name
    with pytest.raises(SystemExit):
        main(["convert", str(folder / "fsdp-4.fsdp"), str(target)])
    assert "nothing is overwritten" in capsys.readouterr().err


def test_a_killed_process_costs_the_updates_since_the_last_checkpoint(runs):
    """Rank 1 is killed after update 7, when 6 have been saved."""
    done, folder = runs
    options = {"mode": "fsdp", "name": "killed", "checkpoint_freq": 3, "drop_rate": 0.1}
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_together(folder, 2, [options | {"kill": (1, 7)}])
    assert newest(folder / "killed.fsdp").name == "step-00000006.0"
    resumed = run_together(folder, 2, [options | {"resume": True}])["killed"]
    assert resumed["losses"] == done["fsdp-2-straight"]["losses"]
    assert weight_distance(resumed, done["fsdp-2-straight"]) == 0


def test_what_is_left_of_a_save_that_was_cut_does_not_count(runs, tmp_path):
    _, folder = runs
    shutil.copytree(folder / "fsdp-2-cut.fsdp", tmp_path / "c")
    (tmp_path / "c/.new").mkdir()
    (tmp_path / "c/.new/__0_0.distcp").write_bytes(b"half")
    assert newest(tmp_path / "c").name == "step-00000005.0"
    older = tmp_path / "c/step-00000004.0"  # being removed when the process was killed
    older.mkdir()
    assert newest(tmp_path / "c").name == "step-00000005.0"
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        newest(tmp_path / "nothing")


def damaged(path: Path, harm: str) -> str:
    """Harm a checkpoint; what the error says."""
    if harm == "cut":
        part = path / "__1_0.distcp"
        part.write_bytes(part.read_bytes()[:-100])
        return "is damaged: __1_0.distcp has"
    if harm == "lost":
        (path / "__0_0.distcp").unlink()
        return "is damaged: __0_0.distcp has 0 bytes instead of"
    metadata = pickle.dumps(os.system)
    (path / ".metadata").write_bytes(metadata)
    rest = torch.load(path / "training.pth", weights_only=True)
    rest["sizes"][".metadata"] = len(metadata)
    torch.save(rest, path / "training.pth")
    return "cannot be read: it asks for posix.system"


@pytest.mark.parametrize("harm", ["cut", "lost", "code"])
def test_a_damaged_checkpoint_is_named_and_runs_no_code(runs, tmp_path, harm):
    _, folder = runs
    shutil.copytree(folder / "fsdp-2-cut.fsdp", tmp_path / "c")
    message = damaged(newest(tmp_path / "c"), harm)
    with pytest.raises(CheckpointError, match=message):
        read_sharded_model(tmp_path / "c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {"seed": 1, "lr": 1e-2}}, "settings differ: seed saved 123, wanted 1"),
        ({"config": CONFIG | {"n_heads": 4}}, "config differs: n_heads saved 2, wanted 4"),
        ({"accumulate": 1}, "data differs: accumulate saved 2, wanted 1"),
        ({"batch_size": 4}, "batch_size saved 8, wanted 4"),
        ({"scheduler": None}, "saved with a learning-rate scheduler, unlike this run"),
        ({"max_steps": 4}, "has made 5 updates, more than the 4"),
    ],
)
def test_another_run_is_refused_by_naming_what_differs(one_rank, runs, options, message):
    _, folder = runs
    with one_rank("fsdp") as team, pytest.raises(CheckpointError, match=message):
        new_trainer(team, folder, "fsdp-2-cut", **options).resume()


def test_another_optimizer_is_refused_by_name(one_rank, runs):
    _, folder = runs
    with one_rank("fsdp") as team:
        trainer = new_trainer(team, folder, "fsdp-2-cut")
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters())
        trainer.scheduler.optimizer = trainer.optimizer
        with pytest.raises(CheckpointError, match="saved with AdamW, this is SGD"):
            trainer.resume()


@pytest.fixture
def one_rank(monkeypatch):
    """A team of one, in the process of the test."""

    @contextlib.contextmanager
    def joined(mode):
        port = str(free_port())
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_PORT", port)
        try:
            yield join(mode, "cpu")
        finally:
            leave()

    return joined


def test_blocks_compute_in_bfloat16_while_weights_and_loss_stay_float32(one_rank):
    with one_rank("fsdp") as team:
        model = GPTModel(CONFIG)
        model = team.wrap(model, torch.bfloat16)
        seen = []
        model.trf_blocks[0].register_forward_hook(lambda *found: seen.append(found[2].dtype))
        logits = model(torch.zeros(2, 8, dtype=torch.long))
        logits.sum().backward()
        assert seen == [torch.bfloat16] and logits.dtype == torch.float32
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_gradients_travel_once_per_update_however_many_batches_it_has(runs, mode):
    done, _ = runs
    assert done[f"{mode}-2-sums-of-3"]["sums"] == done[f"{mode}-2-sums-of-1"]["sums"] > 2


@pytest.mark.parametrize(
    ("environment", "mode", "message"),
    [
        ({}, "ddp", "--parallel ddp needs torchrun, which starts the processes"),
        ({}, "pipeline", "--parallel must be one of ddp, fsdp, got 'pipeline'"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, None, "torchrun has started 2 processes, and"),
    ],
)
def test_processes_and_option_must_fit(monkeypatch, environment, mode, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        join(mode)


def test_a_batch_that_cannot_be_dealt_evenly_is_named_with_the_ways_out(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    check_divisible(4, None)
    with pytest.raises(ValueError, match="batch of 4 rows .* 3 processes: .* or 1, 2 or 4 proc"):
        check_divisible(4, "ddp")


@given(
    rows=st.integers(1, 12),
    length=st.integers(1, 60),
    size=st.integers(1, 5),
    start=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_the_rows_of_all_processes_are_the_batch_and_a_later_start_is_its_rest(
    rows, length, size, start, epoch
):
    order = SeededOrder(length, seed=5)
    order.set_epoch(epoch)
    batches = list(BatchSampler(order, rows, drop_last=False))
    parts = [
        RankBatches(BatchSampler(SeededOrder(length, 5), rows, False), r, size) for r in range(size)
    ]
    for part in parts:
        part.set_epoch(epoch)
    whole = [list(part) for part in parts]
    for number, batch in enumerate(batches):
        pieces = [own[number] for own in whole]
        if len(batch) < size:
            assert pieces == [batch] * size
        else:
            assert sorted(sum(pieces, [])) == sorted(batch)
    parts[0].start_at(start)
    assert list(parts[0]) == whole[0][start:]
    assert list(parts[0]) == whole[0]  # the next time, all of them


def test_windows_that_have_been_used_are_not_read_again(tmp_path):
    write_tokens(tmp_path / "tokens.npy")
    train(Alone(), tmp_path, "run", max_steps=3)
    trainer = new_trainer(Alone(), tmp_path, "run")
    trainer.resume()
    read, dataset = [], trainer.train_loader.dataset.datasets[0]
    with mock.patch.object(
        type(dataset), "__getitem__", lambda self, i: (read.append(i), windows(self, i))[1]
    ):
        next(trainer._batches_of_update())
    assert len(read) == 3 * 8  # one batch to draw the order, two for the update


windows = TokenFileDataset.__getitem__
