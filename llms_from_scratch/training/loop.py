"""The training loop of the scripts: ``train_model_simple`` of chapter 5, made fit for long runs.

It shows progress, writes a log, stops on Ctrl-C without losing anything, and continues exactly
where it stopped. Without these extras it does the same arithmetic in the same order, so for the
same seed it gives the very numbers of ``train_model_simple``.
"""

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from llms_from_scratch.ch05 import calc_loss_batch, evaluating, take_batches
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.training.checkpoint import (
    CheckpointError,
    checkpoint_content,
    get_rng_state,
    set_rng_state,
)
from llms_from_scratch.training.parallel import Alone


@dataclass
class Progress:
    """How far training has come, and what it has measured on the way."""

    epoch: int = 0  # the epoch that is under way, from 0
    batch: int = 0  # batches of it that have been used
    step: int = 0  # updates of the weights
    tokens_seen: int = 0
    seconds: float = 0.0  # spent in training, all runs together
    step_losses: list[float] = field(default_factory=list)  # one per update
    train_losses: list[float] = field(default_factory=list)  # one per evaluation, as below
    val_losses: list[float] = field(default_factory=list)
    track_tokens_seen: list[int] = field(default_factory=list)
    epoch_rng: dict | None = None  # random state at the epoch's start: it fixes the data's order
    notes: dict = field(
        default_factory=dict
    )  # what the caller wants to find again, in a resumed run


class Trainer:
    """Train a model; see ``run``.

    The length is given as ``num_epochs`` or as ``max_steps``, a number of updates.
    ``accumulate`` batches make one update: the same gradient as one batch of that many times the
    size, for less memory. ``config``, ``vocabulary`` and ``settings`` (whatever else makes this
    run: a hash of its text, the seed, the learning rate) go into the checkpoint and are compared
    when training is resumed, and so are the numbers of examples, of batches and of rows in each.
    ``on_step`` is called with the number of updates so far, and ``on_epoch_end`` without arguments,
    for samples say. ``calc_loss`` and ``evaluate`` are chapter 5's functions, or chapter 6's.
    ``team`` is what ``parallel.join`` gives: the processes that train this model together.

    As in ``train_model_simple``, an evaluation draws from the same random numbers as training (it
    shuffles a loader too), so runs with another ``eval_freq`` see the data in another order.

    Raises ``ValueError`` for numbers that make no sense, and for what no checkpoint can hold.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        train_loader: torch.utils.data.DataLoader,
        val_loader: torch.utils.data.DataLoader,
        device: torch.device | str,
        *,
        num_epochs: int | None = None,
        max_steps: int | None = None,
        eval_freq: int,
        eval_iter: int,
        scheduler=None,
        accumulate: int = 1,
        max_grad_norm: float | None = None,
        autocast_dtype: torch.dtype | None = None,
        config: dict | None = None,
        vocabulary: dict | None = None,
        settings: dict | None = None,
        checkpoint_path: str | Path | None = None,
        checkpoint_freq: int | None = None,
        log_path: str | Path | None = None,
        on_step: Callable[[int], None] | None = None,
        on_epoch_end: Callable[[], None] | None = None,
        calc_loss: Callable[..., torch.Tensor] = calc_loss_batch,
        evaluate: Callable[..., tuple[float, float]] | None = None,
        team: Alone | None = None,
    ):
        if num_epochs is None and max_steps is None:
            raise ValueError("how long to train? give num_epochs or max_steps")
        for name, value in (
            ("num_epochs", num_epochs),
            ("max_steps", max_steps),
            ("eval_freq", eval_freq),
            ("accumulate", accumulate),
            ("checkpoint_freq", checkpoint_freq),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0, got {max_grad_norm}")
        if len(train_loader) == 0:
            raise ValueError(
                "the training data do not fill a single batch: use a longer text, a smaller batch "
                "size or a shorter context"
            )
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.train_loader, self.val_loader, self.device = train_loader, val_loader, device
        self.eval_freq, self.eval_iter = eval_freq, eval_iter
        self.accumulate, self.max_grad_norm = accumulate, max_grad_norm
        self.autocast_dtype = autocast_dtype
        self.config, self.vocabulary, self.settings = config or {}, vocabulary, settings
        self.team = team or Alone()
        self.calc_loss, self.evaluate = calc_loss, evaluate or self.team.evaluate
        self.checkpoint_path = Path(checkpoint_path) if checkpoint_path else None
        self.checkpoint_freq = checkpoint_freq
        self.log_path = Path(log_path) if log_path else None
        self.on_step, self.on_epoch_end = on_step, on_epoch_end
        self.max_steps = max_steps or num_epochs * math.ceil(len(train_loader) / accumulate)
        self.progress, self.last_batch = Progress(), None
        if self.checkpoint_path:  # what cannot be saved must not be noticed after hours
            checkpoint_content(self.model, self.optimizer, self.scheduler, **self._belongings())

    def save(self) -> None:
        """Write a checkpoint from which ``resume`` continues exactly.

        Raises ``FloatingPointError``, and keeps the last one, if the weights have become useless.
        """
        self._check_weights()
        if self.checkpoint_path:
            self.team.save_checkpoint(
                self.checkpoint_path,
                self.model,
                self.optimizer,
                self.scheduler,
                progress=asdict(self.progress),
                **self._belongings(),
            )

    def resume(self) -> None:
        """Take up the run that wrote the checkpoint.

        Raises ``CheckpointError`` if it was another run, or one that is longer than this one.
        """
        progress = self.team.load_checkpoint(
            self.checkpoint_path,
            self.model,
            self.optimizer,
            self.scheduler,
            **self._belongings(),
        )
        if progress["step"] > self.max_steps:
            raise CheckpointError(
                f"{self.checkpoint_path} has made {progress['step']} updates, more than the "
                f"{self.max_steps} that are asked for: train for more epochs or steps"
            )
        self.progress = Progress(**progress)
        if self.team.is_main:
            self._cut_log()

    @property
    def is_finished(self) -> bool:
        """Whether all updates have been made."""
        return self.progress.step >= self.max_steps

    def _belongings(self) -> dict:
        """What a checkpoint belongs to; with other data its position would mean something else."""
        dataset = getattr(self.train_loader, "dataset", None)
        order = getattr(self.train_loader, "batch_sampler", None)
        data = {
            "examples": len(dataset) if hasattr(dataset, "__len__") else None,
            "batches": len(self.train_loader),
            "batch_size": getattr(order, "batch_size", None),
            "accumulate": self.accumulate,
        }
        return {
            "config": self.config,
            "vocabulary": self.vocabulary,
            "data": data,
            "settings": self.settings,
        }

    def run(self) -> int | None:
        """Train to the end; return ``None``, or the number of the signal that stopped the run.

        SIGINT (Ctrl-C) and SIGTERM end it after the update that is under way, with a checkpoint; a
        line says so at once. The second one has its usual effect: ``KeyboardInterrupt``, say.
        Raises ``FloatingPointError`` if the loss or its gradient is no longer finite, before it
        harms the weights, and ``ValueError`` for an update without any target.
        """
        with _delayed_signals(self._promise()) as received, self._progress_bar() as bar:
            # A run that was stopped in the last batch of an epoch still has the epoch's end to do
            while not self.is_finished or self.progress.batch == len(self.train_loader):
                self.model.train()
                for batches in self._batches_of_update():
                    started = time.perf_counter()
                    loss = self._update(batches)
                    self.progress.seconds += time.perf_counter() - started
                    self._report(bar, loss)
                    if self.on_step:
                        self.on_step(self.progress.step)
                    if stopped_by := self.team.max(received[0] if received else 0):
                        self.save()
                        return stopped_by
                    if self.checkpoint_freq and self.progress.step % self.checkpoint_freq == 0:
                        self.save()
                    if self.progress.step == self.max_steps:
                        break
                self._check_weights()
                if self.on_epoch_end:
                    self.on_epoch_end()
                if self.progress.batch == len(self.train_loader):
                    self.progress.epoch += 1
                    self.progress.batch = 0
            self.save()
        return self.team.max(received[0] if received else 0) or None

    def _promise(self) -> str:
        if not self.team.is_main:
            return ""
        saving = "then a checkpoint is saved" if self.checkpoint_path else "then the training ends"
        return f"Stopping: this update is finished, {saving}. Once more stops at once."

    def _batches_of_update(self) -> Iterator[list]:
        """The rest of this epoch's batches, in lists of up to ``accumulate``.

        A loader draws its order from PyTorch's random numbers. To go on inside an epoch, its order
        is drawn once more from the state at the epoch's start, and used batches are passed over.
        Persistent workers would draw fewer random numbers after the first epoch of a process, so
        each epoch has new ones.
        """
        progress = self.progress
        order = getattr(self.train_loader, "batch_sampler", None)
        if hasattr(order, "set_epoch"):
            order.set_epoch(progress.epoch)
        if progress.batch == 0:
            progress.epoch_rng = get_rng_state()
            iterator = iter(take_batches(self.train_loader))
        else:
            now = get_rng_state()
            try:
                set_rng_state(progress.epoch_rng)
                iterator = self._pass_over(progress.batch, order)
            finally:
                set_rng_state(now)
        while batches := list(islice(iterator, self.accumulate)):
            progress.batch += len(batches)
            yield batches
        if progress.batch != len(self.train_loader):
            raise ValueError(
                f"the training data have {len(self.train_loader)} batches an epoch by their own "
                f"account, but {progress.batch} were used"
            )

    def _pass_over(self, used: int, order) -> Iterator:
        """This epoch's batches after the first ``used``, not read where the loader allows it.

        One at least is read, so that the order is drawn now.
        """
        unread = used - 1 if hasattr(order, "start_at") else 0
        if unread:
            order.start_at(unread)
        iterator = iter(take_batches(self.train_loader))
        for _ in islice(iterator, used - unread):
            pass
        return iterator

    def _update(self, batches: list) -> float:
        """One update of the weights; returns the mean loss over all targets of the batches."""
        self.optimizer.zero_grad()
        own = [int((targets >= 0).sum()) for _, targets in batches]  # not the ignored -100
        ids = sum(input_batch.numel() for input_batch, _ in batches)
        all_targets, all_ids, empty = self.team.sum([sum(own), ids, own.count(0)])
        if not all_targets or (empty and self.team.size > 1):
            raise ValueError(
                f"step {self.progress.step}: all targets of its batches are ignored, so there is "
                "nothing to learn: leave such examples out"
            )
        with self.team.random_numbers(self.progress.step):
            mean_loss = self._backward(batches, [count / all_targets for count in own])
        (mean_loss,) = self.team.sum([mean_loss])
        self._check_finite("loss", mean_loss)
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.max_grad_norm or math.inf
        )
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # with fsdp
        self._check_finite("norm of the gradient", norm.item())
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.progress.tokens_seen += int(all_ids)
        self.progress.step += 1
        self.progress.step_losses.append(mean_loss)
        return mean_loss

    def _backward(self, batches: list, shares: list[float]) -> float:
        """Add up the batches' gradients; returns this process's part of the mean loss."""
        mean_loss = 0.0
        for number, ((input_batch, target_batch), share) in enumerate(
            zip(batches, shares, strict=True), start=1
        ):
            if share == 0:
                continue  # nothing to learn: its mean loss would be 0 / 0
            with self.team.sharing_gradients(self.model, now=number == len(batches)):
                with self._autocast():
                    loss = self.calc_loss(input_batch, target_batch, self.model, self.device)
                loss = loss * share
                mean_loss += loss.item()
                (loss * self.team.size).backward()  # processes average: this makes it a sum
            self.last_batch = input_batch, target_batch
        return mean_loss

    def _check_weights(self) -> None:
        """Whether the last update leaves a model that computes something, for its own batch."""
        if self.last_batch is not None:
            with evaluating(self.model), self._autocast():
                loss = self.calc_loss(*self.last_batch, self.model, self.device)
            self._check_finite("loss", *self.team.sum([loss.item()]))

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            kept = ""
            if self.checkpoint_path and self.checkpoint_path.exists():
                kept = f"; the last good checkpoint is kept: {self.checkpoint_path}"
            raise FloatingPointError(
                f"the {what} became {value} at step {self.progress.step}: try a lower learning "
                f"rate, gradient clipping, or float32{kept}"
            )

    def _report(self, bar: tqdm, loss: float) -> None:
        """Show the loss, write it to the log, and evaluate when it is time to."""
        progress = self.progress
        record = {"step": progress.step, "loss": loss, "tokens_seen": progress.tokens_seen}
        bar.set_postfix(
            loss=f"{loss:.3f}", tok_per_s=f"{progress.tokens_seen / progress.seconds:,.0f}"
        )
        bar.update()
        if (progress.step - 1) % self.eval_freq == 0:
            with self._autocast():
                train_loss, val_loss = self.evaluate(
                    self.model, self.train_loader, self.val_loader, self.device, self.eval_iter
                )
            progress.train_losses.append(train_loss)
            progress.val_losses.append(val_loss)
            progress.track_tokens_seen.append(progress.tokens_seen)
            record |= {"train_loss": train_loss, "val_loss": val_loss}
            if self.team.is_main:
                bar.write(
                    f"Ep {progress.epoch + 1} (Step {progress.step - 1:06d}): "
                    f"Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"
                )
        if self.log_path and self.team.is_main:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _cut_log(self) -> None:
        """Drop what the log says about updates after the checkpoint: they will be made again."""
        if self.log_path is None or not self.log_path.is_file():
            return
        with self.log_path.open(encoding="utf-8") as file:
            kept = list(islice(file, self.progress.step))  # one line per update
        with atomic_write(self.log_path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def _autocast(self):
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=self.autocast_dtype)

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.max_steps,
            initial=self.progress.step,
            unit="step",
            dynamic_ncols=True,
            disable=not self.team.is_main,
        )


@contextlib.contextmanager
def _delayed_signals(acknowledgement: str = "") -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying at once; a second one does kill."""
    received: list[int] = []
    previous = {}

    def remember(number, frame):
        received.append(number)
        signal.signal(number, previous[number])
        if acknowledgement:
            with contextlib.suppress(RuntimeError, OSError):  # in the midst of another output
                print(f"\n{acknowledgement}", file=sys.stderr, flush=True)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:  # else Python could not put it back
                previous[number] = signal.signal(number, remember)
    except ValueError:  # not in the main thread: signals are not ours to handle
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
