"""Appendix A: the book's toy figures, and processes that train like one and end together."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.data import DataLoader

from llms_from_scratch.appendix_a import (
    NeuralNetwork,
    ToyDataset,
    compute_accuracy,
    count_correct,
    own_share,
    prepare_dataset,
    toy_datasets,
)
from llms_from_scratch.training import distributed

FOLDER = Path(__file__).resolve().parent.parent / "appendix-A" / "01_main-chapter-code"
PATIENCE = 240  # seconds for processes to start on a busy machine


# The toy network


def test_network_of_the_book_has_its_parameters_and_outputs():
    torch.manual_seed(123)
    model = NeuralNetwork(50, 3)
    assert sum(p.numel() for p in model.parameters()) == 2213
    first = model.layers[0].weight[0, :3]
    torch.testing.assert_close(first, torch.tensor([-0.0577, 0.0047, -0.0702]), atol=5e-5, rtol=0)

    torch.manual_seed(123)
    logits = model(torch.rand((1, 50)))
    expected = torch.tensor([[-0.1262, 0.1080, -0.1792]])
    torch.testing.assert_close(logits, expected, atol=5e-5, rtol=0)
    expected = torch.tensor([[0.3113, 0.3934, 0.2952]])
    torch.testing.assert_close(torch.softmax(logits, dim=1), expected, atol=5e-5, rtol=0)


def test_training_on_five_points_gives_the_losses_and_outputs_of_the_book():
    train_ds, test_ds = toy_datasets()
    torch.manual_seed(123)
    train_loader = DataLoader(train_ds, batch_size=2, shuffle=True, drop_last=True)
    test_loader = DataLoader(test_ds, batch_size=2)
    torch.manual_seed(123)
    model = NeuralNetwork(2, 2)
    assert sum(p.numel() for p in model.parameters()) == 752  # exercise A.3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(3):
        for features, labels in train_loader:
            loss = F.cross_entropy(model(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(round(loss.item(), 2))
    assert losses == [0.75, 0.65, 0.44, 0.13, 0.03, 0.00]
    with torch.no_grad():
        outputs = model(train_ds.features)
    expected = torch.tensor(
        [[2.8569, -4.1618], [2.5382, -3.7548], [2.0944, -3.1820], [-1.4814, 1.4816],
         [-1.7176, 1.7342]]
    )  # fmt: skip
    torch.testing.assert_close(outputs, expected, atol=5e-4, rtol=0)
    assert compute_accuracy(model, train_loader) == compute_accuracy(model, test_loader) == 1.0


def test_accuracy_counts_each_example_and_leaves_the_mode_as_it_was():
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Dropout(0.9))  # logits = features
    dataset = ToyDataset(
        torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0]]), torch.tensor([0, 1, 1])
    )
    assert count_correct(model, DataLoader(dataset, batch_size=2)) == (2, 3)
    assert compute_accuracy(model, DataLoader(dataset, batch_size=2)) == 2 / 3
    assert model.training
    model.eval()
    assert compute_accuracy(model, [], "cpu") != compute_accuracy(model, [], "cpu")  # NaN
    assert not model.training


def test_toy_points_are_the_same_in_every_process_and_copies_keep_their_labels():
    state = torch.get_rng_state()
    five, _ = toy_datasets()
    twenty, test = toy_datasets(copies=4)
    assert torch.equal(state, torch.get_rng_state())  # no random numbers taken from the program
    assert torch.equal(twenty.features, toy_datasets(copies=4)[0].features)
    assert torch.equal(twenty.features[:5], five.features) and len(twenty) == 20
    assert twenty.features.unique(dim=0).shape == (20, 2)
    assert torch.equal((twenty.features[:, 0] > 0).long(), twenty.labels)
    assert torch.equal((test.features[:, 0] > 0).long(), test.labels)


def test_dataset_refuses_features_and_labels_of_different_lengths():
    with pytest.raises(ValueError, match="3 rows of features, but 2 labels"):
        ToyDataset(torch.zeros(3, 2), torch.zeros(2))


# Shares of the data


def pretend_to_be(monkeypatch, rank, world_size):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "get_world_size", lambda: world_size)


@pytest.mark.parametrize("world_size", range(1, 9))
def test_ranks_have_batches_of_equal_size_without_a_common_point(monkeypatch, world_size):
    torch.manual_seed(0)
    seen, counts = [], []
    for rank in range(world_size):
        pretend_to_be(monkeypatch, rank, world_size)
        train_loader, _ = prepare_dataset(batch_size=2)
        batches = [features for features, _ in train_loader]
        counts.append([len(batch) for batch in batches])
        seen += [tuple(point.tolist()) for batch in batches for point in batch]
    assert counts == [[2] * (20 // (2 * world_size))] * world_size
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("world_size", range(1, 9))
def test_shares_for_the_accuracy_hold_each_example_once(monkeypatch, world_size):
    for dataset in toy_datasets(copies=4):
        points = []
        for rank in range(world_size):
            pretend_to_be(monkeypatch, rank, world_size)
            points += [p.tolist() for batch, _ in own_share(dataset, 2) for p in batch]
        assert sorted(points) == sorted(dataset.features.tolist())


def test_too_many_ranks_for_the_data_is_an_error_that_says_so(monkeypatch):
    pretend_to_be(monkeypatch, 0, 11)
    with pytest.raises(
        ValueError, match="20 training points do not fill a batch of 2 for each of 11"
    ):
        prepare_dataset(batch_size=2)


# Devices and backends


@pytest.fixture
def no_group_yet(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME", "USE_LIBUV", "LOCAL_RANK",
                 "LOCAL_WORLD_SIZE"):  # fmt: skip
        monkeypatch.setenv(name, "")  # so that it is removed in the end
        monkeypatch.delenv(name)
    yield monkeypatch
    if dist.is_initialized():
        dist.destroy_process_group()


def test_on_windows_the_group_uses_gloo_without_libuv(no_group_yet):
    no_group_yet.setenv("MASTER_PORT", str(distributed.free_port()))
    no_group_yet.setattr(distributed.sys, "platform", "win32")
    assert distributed.ddp_setup(0, 1).type == "cpu" or torch.cuda.is_available()
    assert dist.get_backend() == "gloo"
    assert os.environ["USE_LIBUV"] == "0"
    assert "GLOO_SOCKET_IFNAME" not in os.environ  # the interface has another name there
    assert distributed.sum_over_ranks((1, 2.5), "cpu") == [1, 2.5]


@pytest.mark.parametrize(
    "world_size, environment, expected",
    [
        (2, {}, ("nccl", "cuda:1")),
        (4, {}, ("gloo", "cpu")),  # more processes than GPUs
        (6, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, ("nccl", "cuda:0")),  # three machines
    ],
)
def test_each_process_has_a_gpu_of_its_own_or_none(no_group_yet, world_size, environment, expected):
    groups = []
    no_group_yet.setattr(torch.cuda, "device_count", lambda: 2)
    no_group_yet.setattr(torch.cuda, "set_device", lambda device: None)
    no_group_yet.setattr(dist, "is_nccl_available", lambda: True)
    no_group_yet.setattr(dist, "init_process_group", lambda backend, **_: groups.append(backend))
    no_group_yet.setattr(distributed, "keep_until_exit", lambda group: None)
    for name, value in environment.items():
        no_group_yet.setenv(name, value)
    device = distributed.ddp_setup(1, world_size)
    assert (*groups, str(device)) == expected


# The scripts, as processes of their own


def command(script, processes, *options):
    if script == "DDP-script.py":
        return [sys.executable, script, "--processes", str(processes), *options]
    port = str(distributed.free_port())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--master_port", port]
    return [*torchrun, f"--nproc_per_node={processes}", script, *options]


def environment():
    kept = {k: v for k, v in os.environ.items() if k not in ("MASTER_ADDR", "MASTER_PORT")}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(arguments, folder=FOLDER):
    return subprocess.run(
        arguments, cwd=folder, env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )


def single_process(num_epochs, global_batch_size):
    """The same training without any of the code for several processes."""
    dataset, _ = toy_datasets(copies=4)
    torch.manual_seed(123)
    model = NeuralNetwork(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for epoch in range(num_epochs):
        order = torch.randperm(20, generator=torch.Generator().manual_seed(123 + epoch))
        for batch in order[: 20 // global_batch_size * global_batch_size].split(global_batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(dataset.features[batch]), dataset.labels[batch]).backward()
            optimizer.step()
    return model.state_dict()


def assert_same_weights(path, num_epochs, global_batch_size):
    trained = torch.load(path, weights_only=True)
    expected = single_process(num_epochs, global_batch_size)
    assert trained.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, atol=1e-6, rtol=0)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("script", ["DDP-script.py", "DDP-script-torchrun.py"])
def test_several_processes_train_the_weights_of_a_single_one(script, processes, tmp_path):
    weights = tmp_path / "weights.pth"
    result = run(command(script, processes, "--save", str(weights)))
    assert result.returncode == 0, result.stderr
    for rank in range(processes):
        assert result.stdout.count(f"[Rank {rank}] Epoch: ") == 3
    assert result.stdout.count("Training accuracy: 1.00 (20 of 20 points)") == 1
    assert result.stdout.count("Test accuracy: 1.00 (2 of 2 points)") == 1
    assert_same_weights(weights, num_epochs=3, global_batch_size=2 * processes)


OTHER_WORLD_SIZES = (3, 5, 6, 7, 8)
ONE_AFTER_ANOTHER = """
import os, sys
import torch
import torch.distributed as dist
from llms_from_scratch.appendix_a import main
from llms_from_scratch.training.distributed import ddp_setup, free_port, launch, sum_over_ranks

def all_sizes(rank, most, folder, sizes, ports):
    for world_size, os.environ["MASTER_PORT"] in zip(sizes, ports):
        if rank < world_size:
            main(rank, world_size, 2, save_to=f"{folder}/{world_size}.pth")
            assert torch.initial_seed() == 123
    os.environ["MASTER_PORT"] = ports[-1]
    device = ddp_setup(rank, most)
    assert sum_over_ranks((rank, 0.5), device) == [sum(range(most)), most / 2]
    dist.destroy_process_group()

if __name__ == "__main__":
    folder, *sizes = sys.argv[1:]
    ports = [str(free_port()) for _ in range(len(sizes) + 1)]
    launch(all_sizes, 8, folder, [int(size) for size in sizes], ports)
"""


@pytest.mark.slow
def test_any_other_number_of_processes_up_to_eight_does_so_too(tmp_path):
    script = tmp_path / "one_after_another.py"
    script.write_text(ONE_AFTER_ANOTHER, encoding="utf-8")
    result = run([sys.executable, str(script), str(tmp_path), *map(str, OTHER_WORLD_SIZES)])
    assert result.returncode == 0, result.stderr
    for processes in OTHER_WORLD_SIZES:
        assert_same_weights(tmp_path / f"{processes}.pth", 2, global_batch_size=2 * processes)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("script", ["DDP-script.py", "DDP-script-torchrun.py"])
def test_killing_one_rank_ends_the_whole_job(script, tmp_path):
    log = tmp_path / "log.txt"
    with log.open("w", encoding="utf-8") as output:
        job = subprocess.Popen(
            command(script, 2, "--epochs", "1000000"),
            cwd=FOLDER, env=environment(), stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    ranks = []
    try:
        wait_until(lambda: "[Rank 1] Epoch: 002" in log.read_text(encoding="utf-8"), job)
        marker = "spawn_main" if script == "DDP-script.py" else script
        for process in psutil.Process(job.pid).children(recursive=True):
            if any(marker in argument for argument in process.cmdline()):
                ranks.append(process)
        assert len(ranks) == 2
        ranks[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        assert job.wait(timeout=30) not in (0, None)
        assert psutil.wait_procs(ranks, timeout=30 - (time.monotonic() - killed))[1] == []
    finally:
        for process in [job, *ranks]:
            if process.poll() is None if process is job else process.is_running():
                process.kill()
    message = "exit code -9" if script == "DDP-script.py" else f"SIGKILL.* PID {ranks[1].pid}"
    assert re.search(message, log.read_text(encoding="utf-8").replace("\n", " "))


def wait_until(condition, job):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert job.poll() is None, "the job ended too early"
        assert time.monotonic() < deadline, "the job did not start"
        time.sleep(0.1)


RAISING = """
import sys
import torch.distributed as dist
from llms_from_scratch.training.distributed import RankFailed, ddp_setup, launch, sum_over_ranks

def work(rank, world_size, when):
    if rank == 1 and when == "before":
        raise ValueError("a planned failure")
    device = ddp_setup(rank, world_size)
    if rank == 1:
        raise ValueError("a planned failure")
    while True:
        sum_over_ranks((1,), device)  # waits for rank 1

if __name__ == "__main__":
    try:
        launch(work, 2, sys.argv[1])
    except RankFailed as error:
        sys.exit(f"short message: {error}")
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_error_in_one_rank_is_shown_and_stops_ranks_that_wait_for_it(when, tmp_path):
    script = tmp_path / "raising.py"
    script.write_text(RAISING, encoding="utf-8")
    result = run([sys.executable, str(script), when])
    assert result.returncode == 1
    assert result.stderr.count("short message: rank ") == 1
    assert "rank 1: exit code 1" in result.stderr
    if when == "before":  # afterwards, rank 0 may be the first that is noticed
        assert "ValueError: a planned failure" in result.stderr


@pytest.mark.parametrize("option", [("--epochs", "0"), ("--epochs", "-1"), ("--batch-size", "x")])
def test_wrong_options_are_refused_in_one_line(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        distributed.training_options("").parse_args(option)
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.endswith(f"{option[1]!r} is not a whole number of at least 1")


@pytest.mark.parametrize("script", ["DDP-script.py", "DDP-script-torchrun.py"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save", "/missing/x.pth"], "the folder /missing does not exist"),
        (["--save", "."], "is a folder: give the name of a file"),
        (["--batch-size", "21"], "20 training points do not fill a batch of 21"),
    ],
)
def test_what_cannot_work_is_refused_before_any_process_starts(script, options, message, tmp_path):
    result = run([sys.executable, str(FOLDER / script), *options], folder=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_more_processes_than_there_is_work_for_are_refused_at_once(tmp_path):
    arguments = [sys.executable, str(FOLDER / "DDP-script.py"), "--processes", "30"]
    result = run(arguments, folder=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert "for each of 30 ranks: use fewer processes" in result.stderr


@pytest.mark.gpu
def test_ddp_script_trains_on_the_gpus_of_this_machine():
    result = subprocess.run(
        [sys.executable, "DDP-script.py"], cwd=FOLDER, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    assert "Training accuracy: 1.00 (20 of 20 points)" in result.stdout
