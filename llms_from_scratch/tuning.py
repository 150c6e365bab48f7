"""Search of hyperparameters (bonus of chapter 5): which settings train a GPT best on a text?

Optuna proposes configurations, remembers them in a file, and stops hopeless ones. What is ours: the
training of one configuration, and the rule by which several workers share a search so that none is
lost or done twice, even if workers are killed.
"""

import itertools
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import torch
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, Trial, TrialState
from torch.utils.data import DataLoader

from llms_from_scratch.appendix_d import learning_rate, set_learning_rate, update_and_clip
from llms_from_scratch.ch02 import create_dataloader_v1
from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.ch05 import calc_loss_loader, evaluate_model, evaluating
from llms_from_scratch.data.files import atomic_write

# The grid of the book's supplement: 12,960 configurations
HPARAM_GRID = {
    "batch_size": [2, 4, 8, 16],
    "drop_rate": [0.0, 0.1, 0.2],
    "warmup_iters": [10, 20, 30],
    "weight_decay": [0.1, 0.01, 0.0],
    "peak_lr": [0.0001, 0.0005, 0.001, 0.005],
    "initial_lr": [0.00005, 0.0001],
    "min_lr": [0.00005, 0.00001, 0.0001],
    "n_epochs": [5, 10, 15, 20, 25],
}
SEED = 123  # of each configuration: they all start from the same weights
SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("median", "none")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
ATTEMPTS = 100  # to find a configuration that has not been tried, before we look for one in order


def num_configurations(grid: dict[str, Sequence]) -> int:
    """How many combinations a grid has.

    >>> num_configurations(HPARAM_GRID)
    12960
    """
    return len(list(itertools.product(*grid.values())))


@dataclass(frozen=True)
class Texts:
    """The three parts of a text. Configurations are compared on the second; the third is for the
    end, when one has been chosen."""

    train: str
    validation: str
    test: str

    @classmethod
    def split(cls, text: str, shares: tuple[float, float] = (0.90, 0.05)) -> "Texts":
        """Cut a text, in this order, at shares of its characters; the rest is the test part."""
        first = int(shares[0] * len(text))
        second = int((shares[0] + shares[1]) * len(text))
        return cls(text[:first], text[first:second], text[second:])


def train_configuration(
    configuration: dict,
    texts: Texts,
    model_config: dict,
    device: torch.device | str = "cpu",
    eval_iter: int | None = 1,
    on_epoch: Callable[[int, float], None] | None = None,
) -> tuple[GPTModel, float, float]:
    """Train a GPT from scratch. Returns the model, and its losses on training and validation text.

    ``configuration`` has the keys of ``HPARAM_GRID``. Learning rates and clipping are those of
    appendix D. ``on_epoch`` gets the number of epochs done and the validation loss; it may raise.
    Raises ``ValueError`` if a part of the text is too short for a batch.
    """
    torch.manual_seed(SEED)
    model = GPTModel(model_config | {"drop_rate": configuration["drop_rate"]}).to(device)
    length, batch_size = model_config["context_length"], configuration["batch_size"]
    train_loader = loader_of(texts.train, batch_size, length, training=True)
    val_loader = loader_of(texts.validation, batch_size, length)
    peak, warmup = configuration["peak_lr"], configuration["warmup_iters"]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak, weight_decay=configuration["weight_decay"]
    )
    total, step = len(train_loader) * configuration["n_epochs"], 0
    rates = configuration["initial_lr"], peak, configuration["min_lr"]
    for epoch in range(1, configuration["n_epochs"] + 1):
        model.train()
        for input_batch, target_batch in train_loader:
            set_learning_rate(optimizer, learning_rate(step, total, warmup, *rates), [1.0])
            limit = 1.0 if step >= warmup else None
            update_and_clip(model, optimizer, input_batch, target_batch, device, limit)
            step += 1
        if on_epoch:
            on_epoch(epoch, loss_on(val_loader, model, device, eval_iter))
    losses = evaluate_model(model, train_loader, val_loader, device, eval_iter)
    return model, *losses


def loader_of(text: str, batch_size: int, length: int, training: bool = False) -> DataLoader:
    return create_dataloader_v1(
        text, batch_size, length, stride=length, shuffle=training, drop_last=training
    )


def loss_on(loader: DataLoader, model: GPTModel, device, num_batches: int | None = None) -> float:
    with evaluating(model):
        return calc_loss_loader(loader, model, device, num_batches)


@dataclass
class Search:
    """A search in a folder: ``study.db`` is Optuna's storage, which several workers may share.

    A worker holds a lock of its own while it lives; the operating system frees it when the worker
    ends, however it ends. So what a dead worker was doing is known at once, and done again.
    Raises ``ValueError`` if the folder holds a search with another grid or model.
    """

    folder: Path
    grid: dict[str, Sequence]
    sampler: str = "tpe"
    pruner: str = "median"
    seed: int = SEED
    identity: dict = field(default_factory=dict)  # what else makes this search: model, text
    worker: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self):
        for name, value, known in (
            ("sampler", self.sampler, SAMPLERS),
            ("pruner", self.pruner, PRUNERS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        (self.folder / "workers").mkdir(parents=True, exist_ok=True)
        with self.lock():
            self.study = optuna.create_study(
                study_name="search",
                storage=f"sqlite:///{self.folder / 'study.db'}",
                sampler=self._make_sampler(),
                pruner=self._make_pruner(),
                load_if_exists=True,
            )
            about = json.dumps({"grid": self.grid, **self.identity}, sort_keys=True)
            known = self.study.user_attrs.setdefault("about", about)
            if known != about:
                raise ValueError(
                    f"{self.folder} holds a search with another grid, model or text: choose "
                    "another folder, or --overwrite"
                )
            self.study.set_user_attr("about", about)

    def _make_sampler(self):
        options = {"seed": None if self.seed is None else self.seed + self._num_workers_before()}
        if self.sampler == "tpe":
            return optuna.samplers.TPESampler(**options, constant_liar=True, n_startup_trials=8)
        return optuna.samplers.RandomSampler(**options)

    def _num_workers_before(self) -> int:
        return len(list((self.folder / "workers").iterdir()))  # so that no two draw the same

    def _make_pruner(self):
        if self.pruner == "none":
            return optuna.pruners.NopPruner()
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One worker at a time decides what is done next."""
        with FileLock(self.folder / "search.lock"):
            yield

    def run(
        self,
        objective: Callable[[dict, Trial], float],
        num_trials: int,
        on_finished: Callable[[int], None] | None = None,
    ) -> None:
        """Work until ``num_trials`` configurations are finished, by all workers together.

        ``objective`` gets a configuration and Optuna's trial, and returns the validation loss; it
        may raise ``optuna.TrialPruned``.
        """
        with FileLock(self._lock_of(self.worker)):
            while (trial := self._next_trial(num_trials)) is not None:
                try:
                    value = objective(dict(trial.params), trial)
                except optuna.TrialPruned:
                    self.study.tell(trial, state=TrialState.PRUNED)
                except BaseException:
                    self.study.tell(trial, state=TrialState.FAIL)
                    raise
                else:
                    self.study.tell(trial, value)
                if on_finished:
                    on_finished(len(self.finished()))

    def finished(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=FINISHED)

    def _lock_of(self, worker: str) -> Path:
        return self.folder / "workers" / f"{worker}.lock"

    def _next_trial(self, num_trials: int) -> Trial | None:
        """A trial with a configuration that nobody has done or is doing; None at the end."""
        with self.lock():
            self._give_up_what_dead_workers_did()
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            taken = {self._key(trial.params) for trial in [*self.finished(), *running]}
            if len(taken) >= min(num_trials, num_configurations(self.grid)):
                return None
            for attempt in range(ATTEMPTS + 1):
                if self.sampler == "grid" or attempt == ATTEMPTS:
                    self.study.enqueue_trial(self._first_free(taken))
                trial = self.study.ask()
                for name, values in self.grid.items():
                    trial.suggest_categorical(name, values)
                if self._key(trial.params) not in taken:
                    trial.set_user_attr("worker", self.worker)
                    return trial
                self.study.tell(trial, state=TrialState.FAIL)
        raise AssertionError("the last attempt is a free configuration")

    def _key(self, configuration: dict) -> tuple:
        return tuple(configuration.get(name) for name in self.grid)

    def _first_free(self, taken: set[tuple]) -> dict:
        """The first configuration of the grid, in the order of a nested loop, that is not taken."""
        combinations = itertools.product(*self.grid.values())
        values = next(combination for combination in combinations if combination not in taken)
        return dict(zip(self.grid, values, strict=True))

    def _give_up_what_dead_workers_did(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get("worker")
            if worker == self.worker:
                continue
            if worker is None or self._is_dead(worker):
                self.study.tell(trial.number, state=TrialState.FAIL)

    def _is_dead(self, worker: str) -> bool:
        try:
            with FileLock(self._lock_of(worker), timeout=0):
                return True
        except Timeout:
            return False

    def best(self) -> FrozenTrial:
        """The finished trial with the lowest validation loss; ``ValueError`` if there is none."""
        return self.study.best_trial


def gpt_train_settings(configuration: dict, model_config: dict) -> dict:
    """A configuration in the form that ``gpt_train.py --settings`` reads."""
    names = {"peak_lr": "learning_rate", "n_epochs": "num_epochs", "warmup_iters": "warmup_steps"}
    settings = {names.get(key, key): value for key, value in configuration.items()}
    drop_rate = settings.pop("drop_rate")
    return {"config": model_config | {"drop_rate": drop_rate}, "settings": settings}


def write_json(path: Path, content: dict) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
