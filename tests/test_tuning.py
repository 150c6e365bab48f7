"""The search of hyperparameters: each configuration once, whoever is killed and whoever helps."""

import importlib.util
import itertools
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
import torch

from llms_from_scratch import appendix_d, tuning
from llms_from_scratch.ch04 import GPT_CONFIG_124M, GPTModel
from llms_from_scratch.tuning import HPARAM_GRID, Search, Texts, train_configuration

ROOT = Path(__file__).resolve().parent.parent
GRID = {"peak_lr": [0.1, 0.2, 0.3], "drop_rate": [0.0, 0.1]}
SMALL = GPT_CONFIG_124M | {"context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 1}
CONFIGURATION = {name: values[0] for name, values in HPARAM_GRID.items()} | {"n_epochs": 2}
TEXT = "The cat sat on the mat, and the dog looked at the cat. " * 12


def loss_of(configuration: dict, trial=None) -> float:
    return configuration["peak_lr"] + configuration["drop_rate"]


def params_of(search: Search) -> list[tuple]:
    return [tuple(trial.params[name] for name in GRID) for trial in search.finished()]


def test_the_default_grid_is_that_of_the_book():
    assert tuning.num_configurations(HPARAM_GRID) == 12_960


def test_a_grid_search_does_each_configuration_once_in_the_order_of_a_nested_loop(tmp_path):
    search = Search(tmp_path, GRID, "grid")
    search.run(loss_of, num_trials=100)
    assert params_of(search) == list(itertools.product(*GRID.values()))
    assert search.best().params == {"peak_lr": 0.1, "drop_rate": 0.0}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_no_sampler_does_a_configuration_twice_and_all_can_finish_the_grid(tmp_path, sampler):
    search = Search(tmp_path, GRID, sampler)
    search.run(loss_of, num_trials=6)
    assert Counter(params_of(search)) == Counter(itertools.product(*GRID.values()))


def test_a_search_goes_on_where_it_was(tmp_path):
    Search(tmp_path, GRID, "grid").run(loss_of, num_trials=2)
    again = Search(tmp_path, GRID, "grid")
    assert len(again.finished()) == 2
    again.run(loss_of, num_trials=5)
    assert params_of(again) == list(itertools.product(*GRID.values()))[:5]


def test_another_grid_or_text_is_refused_in_the_same_folder(tmp_path):
    Search(tmp_path, GRID, identity={"text": "a"})
    with pytest.raises(ValueError, match="another grid, model or text"):
        Search(tmp_path, GRID | {"drop_rate": [0.5]}, identity={"text": "a"})
    with pytest.raises(ValueError, match="another folder, or --overwrite"):
        Search(tmp_path, GRID, identity={"text": "b"})


def test_a_configuration_that_is_given_up_is_finished(tmp_path):
    def objective(configuration, trial):
        if configuration["drop_rate"]:
            raise optuna.TrialPruned
        return loss_of(configuration)

    search = Search(tmp_path, GRID, "grid")
    search.run(objective, num_trials=6)
    assert len(search.finished()) == 6
    assert search.best().params["drop_rate"] == 0.0


def test_what_fails_is_not_finished_and_is_done_again(tmp_path):
    def objective(configuration, trial):
        raise KeyboardInterrupt

    search = Search(tmp_path, GRID, "grid")
    with pytest.raises(KeyboardInterrupt):
        search.run(objective, num_trials=3)
    assert not search.finished()
    search.run(loss_of, num_trials=3)
    assert params_of(search) == list(itertools.product(*GRID.values()))[:3]


WORKER = """
import sys, time
from pathlib import Path
from llms_from_scratch.tuning import Search

def objective(configuration, trial):
    time.sleep(0.1)
    return configuration["a"]

folder, started = Path(sys.argv[1]), Path(sys.argv[2])
search = Search(folder, {"a": list(range(12))}, sys.argv[3])
started.touch()
search.run(objective, num_trials=12)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a signal of POSIX")
@pytest.mark.parametrize("sampler", ["grid", pytest.param("random", marks=pytest.mark.slow)])
def test_killed_workers_lose_and_repeat_no_finished_configuration(tmp_path, sampler):
    folder = tmp_path / "search"
    for number in range(3):
        started = tmp_path / f"started-{number}"
        command = [sys.executable, "-c", WORKER, str(folder), str(started), sampler]
        workers = [subprocess.Popen(command), subprocess.Popen(command)]
        while not started.exists():
            assert any(worker.poll() is None for worker in workers) or started.exists()
            time.sleep(0.02)
        time.sleep(0.15 + 0.1 * number)
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
    seen = [t.number for t in Search(folder, {"a": list(range(12))}, sampler).finished()]
    subprocess.run(
        [sys.executable, "-c", WORKER, str(folder), str(tmp_path / "x"), sampler], check=True
    )
    search = Search(folder, {"a": list(range(12))}, sampler)
    assert sorted(trial.params["a"] for trial in search.finished()) == list(range(12))
    assert set(seen) <= {trial.number for trial in search.finished()}


def test_the_parts_of_a_text_are_the_whole_text_and_none_is_empty():
    parts = Texts.split(TEXT)
    assert parts.train + parts.validation + parts.test == TEXT
    assert min(len(parts.train), len(parts.validation), len(parts.test)) > 20


def test_a_configuration_is_trained_as_appendix_d_trains_it(monkeypatch, capsys):
    texts = Texts.split(TEXT, (0.6, 0.2))
    ours, *_ = train_configuration(CONFIGURATION, texts, SMALL)

    monkeypatch.setattr(appendix_d, "evaluate_model", lambda *args: (0.0, 0.0))  # it shuffles
    torch.manual_seed(tuning.SEED)
    theirs = GPTModel(SMALL | {"drop_rate": CONFIGURATION["drop_rate"]})
    loader = tuning.loader_of(texts.train, CONFIGURATION["batch_size"], 8, training=True)
    options = {"lr": CONFIGURATION["peak_lr"], "weight_decay": CONFIGURATION["weight_decay"]}
    appendix_d.train_model(
        theirs,
        loader,
        loader,
        torch.optim.AdamW(theirs.parameters(), **options),
        "cpu",
        n_epochs=CONFIGURATION["n_epochs"],
        eval_freq=1,
        eval_iter=1,
        start_context="The",
        tokenizer=_NoWords(),
        warmup_steps=CONFIGURATION["warmup_iters"],
        **{name: CONFIGURATION[name] for name in ("initial_lr", "min_lr")},
    )
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name


class _NoWords:
    """A tokenizer for the sample that ``train_model`` prints."""

    def encode(self, text, **options):
        return [1]

    def decode(self, ids):
        return ""


def test_the_same_configuration_gives_the_same_losses_bit_for_bit():
    texts = Texts.split(TEXT, (0.6, 0.2))
    first, second = (train_configuration(CONFIGURATION, texts, SMALL)[1:] for _ in range(2))
    assert first == second


def load_script(path: str):
    path = ROOT / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_searches_draws_and_writes_what_gpt_train_takes(tmp_path, monkeypatch):
    script = load_script("ch05/05_bonus_hparam_tuning/hparam_search.py")
    monkeypatch.syspath_prepend(ROOT / "ch05/01_main-chapter-code")
    train = load_script("ch05/01_main-chapter-code/gpt_train.py")
    grid = {name: values[:1] for name, values in HPARAM_GRID.items()}
    grid |= {"n_epochs": [1, 2], "peak_lr": [0.001, 0.01]}
    monkeypatch.setitem(script.PRESETS, "tiny", (SMALL, grid, 4))
    path, out = tmp_path / "text.txt", tmp_path / "out"
    path.write_text(TEXT * 3, encoding="utf-8")
    options = ["--preset", "tiny", "--data", str(path), "--out", str(out), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["hparam_search.py", *options])
    script.main(script.parse_args()[1])
    for name in (*(f"{plot}.png" for plot in script.PLOTS), "trials.csv", "best.json"):
        assert (out / name).stat().st_size > 0
    best = json.loads((out / "best.json").read_text(encoding="utf-8"))
    assert {"training_loss", "validation_loss", "test_loss"} <= best.keys()
    config, settings = train.read_settings(out / "best.json")
    losses, *_ = train.main(config, settings, data=str(path), device="cpu")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("content", ["", "[]", '{"config": {}}', '{"config": 1, "settings": 2}'])
def test_a_file_that_holds_no_settings_is_named(tmp_path, monkeypatch, content):
    monkeypatch.syspath_prepend(ROOT / "ch05/01_main-chapter-code")
    train = load_script("ch05/01_main-chapter-code/gpt_train.py")
    (tmp_path / "best.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="best.json is no file of settings"):
        train.read_settings(tmp_path / "best.json")
