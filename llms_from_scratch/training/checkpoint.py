"""Checkpoints from which training continues as if it had never stopped.

One file holds the model, the optimizer, the learning-rate schedule, the position in the data and
the state of every random number generator, together with what they belong to: the configuration,
the vocabulary, the kind of data and a format version. The model's tensors have plain names: it
does not matter whether it was compiled or trained by several processes. The file is written to a
temporary name and renamed, so the newest checkpoint is always whole, also after a crash in the
middle of saving.
"""

import hashlib
import random
import zipfile
from pathlib import Path

import numpy as np
import torch

from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.generate import token_bytes
from llms_from_scratch.saving import (
    load_plain_state_dict,
    lora_layers,
    plain_state_dict,
    plain_value,
    same_value,
)

FORMAT = "llms_from_scratch checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint is damaged, or does not belong to what it is loaded into."""


def save_checkpoint(
    path: str | Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler=None,
    *,
    config: dict,
    vocabulary: dict | None = None,
    progress: dict | None = None,
    data: dict | None = None,
    settings: dict | None = None,
) -> None:
    """Write all that training needs to go on exactly; ``path`` is replaced in one step.

    ``progress`` is the caller's own dictionary of numbers, lists and tensors (step, losses, ...),
    ``data`` describes what the position in the data depends on, the batch size say, and
    ``settings`` what else makes this run (a hash of its text, seed, learning rate). Raises
    ``ValueError``, before anything is written, for what ``load_checkpoint`` could not read.
    """
    path = Path(path)
    content = checkpoint_content(
        model,
        optimizer,
        scheduler,
        config=config,
        vocabulary=vocabulary,
        progress=progress,
        data=data,
        settings=settings,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for stray in path.parent.glob(f".{path.name}.*.tmp"):
        stray.unlink(missing_ok=True)  # left by a process that was killed while it saved
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def checkpoint_content(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler=None,
    *,
    config: dict,
    vocabulary: dict | None = None,
    progress: dict | None = None,
    data: dict | None = None,
    settings: dict | None = None,
) -> dict:
    """What ``save_checkpoint`` writes. Its tensors are those of the model, not copies."""
    if merged := lora_layers(model, merged=True):
        raise ValueError(f"the LoRA layer {merged[0]!r} is merged: call unmerge_lora to train on")
    content = {
        "config": config,
        "vocabulary": vocabulary,
        "data": data,
        "settings": settings,
        "model": plain_state_dict(model),
        "optimizer_class": type(optimizer).__name__,
        "optimizer": optimizer.state_dict(),
        "scheduler_class": type(scheduler).__name__ if scheduler else None,
        "scheduler": scheduler.state_dict() if scheduler else None,
        "progress": progress or {},
        "rng": get_rng_state(),
    }
    plain = {name: plain_value(value, name) for name, value in content.items()}
    return {"format": FORMAT, "version": VERSION, **plain}


def load_checkpoint(
    path: str | Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler=None,
    *,
    config: dict | None = None,
    vocabulary: dict | None = None,
    data: dict | None = None,
    settings: dict | None = None,
) -> dict:
    """Restore what ``save_checkpoint`` saved, and return ``progress``.

    With an optimizer, the random number generators are restored too; without one, only the model.
    Raises ``CheckpointError`` before anything is changed if the file is damaged or has another
    format version, or if configuration, vocabulary, data, settings, optimizer, scheduler or tensors
    do not fit.
    """
    content = read_checkpoint(path)
    given = {"config": config, "vocabulary": vocabulary, "data": data, "settings": settings}
    check_belongings(path, content, given)
    if merged := lora_layers(model, merged=True):
        raise CheckpointError(f"the LoRA layer {merged[0]!r} is merged: call unmerge_lora first")
    check_tensors(path, content["model"], plain_state_dict(model))
    if optimizer is not None:
        _check_optimizer(path, content, optimizer)
        check_scheduler(path, content, scheduler)

    load_plain_state_dict(model, content["model"])
    if optimizer is not None:
        optimizer.load_state_dict(content["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(content["scheduler"])
        set_rng_state(content["rng"])
    return content["progress"]


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint file to the CPU, without executing code from it.

    PyTorch's file is a zip archive with a checksum of each record; all are compared first.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is not a readable checkpoint: {reason}") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged!r} is wrong")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no training checkpoint of this project")
    if content["version"] != VERSION:
        raise CheckpointError(
            f"{path} has format version {content['version']}, this code reads version {VERSION}"
        )
    return content


def get_rng_state() -> dict:
    """The state of every random number generator that training may use."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def set_rng_state(state: dict) -> None:
    """Continue the random numbers where ``get_rng_state`` saw them."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    if state.get("mps") is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def describe_vocabulary(tokenizer) -> dict:
    """What identifies a ``tiktoken`` vocabulary: its name, size, and a hash of all its tokens."""
    digest = hashlib.sha256()
    for token_id in range(tokenizer.n_vocab):
        token = token_bytes(tokenizer, token_id)  # empty in a gap
        digest.update(len(token).to_bytes(4, "little") + token)
    return {"name": tokenizer.name, "size": tokenizer.n_vocab, "sha256": digest.hexdigest()}


def check_belongings(path: str | Path, content: dict, given: dict) -> None:
    """Raise ``CheckpointError`` that names all that differs from what is given."""
    differences = []
    for name, wanted in given.items():
        is_older = name in ("data", "settings") and content.get(name) is None
        if wanted is None or is_older:
            continue
        wanted = plain_value(wanted, name)
        if not same_value(content[name], wanted):
            verb = "differ" if name == "settings" else "differs"
            differences.append(f"{name} {verb}: {_difference(content[name], wanted)}")
    if differences:
        raise CheckpointError(
            f"{path}: {'; '.join(differences)}. It is another run: give what was saved, or start "
            "anew in another folder"
        )


def check_tensors(path: str | Path, saved: dict, wanted: dict) -> None:
    for name, tensor in wanted.items():
        if name not in saved:
            raise CheckpointError(f"{path}: tensor {name!r} is missing")
        if saved[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {tuple(saved[name].shape)}, "
                f"the model wants {tuple(tensor.shape)}"
            )
    extra = saved.keys() - wanted.keys()
    if extra:
        raise CheckpointError(f"{path}: the model has no tensor {sorted(extra)[0]!r}")


def _check_optimizer(path: str | Path, content: dict, optimizer: torch.optim.Optimizer) -> None:
    name = type(optimizer).__name__
    if content["optimizer_class"] != name:
        raise CheckpointError(f"{path}: saved with {content['optimizer_class']}, this is {name}")
    saved = [len(group["params"]) for group in content["optimizer"]["param_groups"]]
    wanted = [len(group["params"]) for group in optimizer.param_groups]
    if saved != wanted:
        raise CheckpointError(f"{path}: the optimizer has {saved} parameters, this one {wanted}")


def check_scheduler(path: str | Path, content: dict, scheduler) -> None:
    if (scheduler is None) != (content["scheduler"] is None):
        raise CheckpointError(
            f"{path}: saved {'with' if scheduler is None else 'without'} "
            "a learning-rate scheduler, unlike this run"
        )
    name = type(scheduler).__name__
    if scheduler is not None and content.get("scheduler_class", name) != name:
        raise CheckpointError(
            f"{path}: saved with the scheduler {content['scheduler_class']}, this is {name}"
        )


def _difference(saved, wanted) -> str:
    if not isinstance(saved, dict) or not isinstance(wanted, dict):
        return f"saved {saved!r}, wanted {wanted!r}"
    keys = [k for k in {**saved, **wanted} if not same_value(saved.get(k), wanted.get(k))]
    return ", ".join(f"{k} saved {saved.get(k)!r}, wanted {wanted.get(k)!r}" for k in keys)
