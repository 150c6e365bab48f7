"""Checkpoints of a model that no process holds whole (``--parallel fsdp``).

Each process writes its part with ``torch.distributed.checkpoint``, and any other number of
processes can read them. A checkpoint is a folder ``step-...`` that takes its name in one step when
it is complete; the one before it is removed after that, so there is always a whole one.

The tensors are PyTorch's, and ``training.pth`` beside them holds the rest, as ``checkpoint.py``
describes it. Neither is unpickled without a list of what may come out of it.
"""

import io
import pickle
import shutil
import warnings
from pathlib import Path, PurePath

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule

from llms_from_scratch.data.files import atomic_write, flush_to_disk
from llms_from_scratch.training.checkpoint import (
    CheckpointError,
    check_belongings,
    check_scheduler,
    check_tensors,
    checkpoint_content,
    read_checkpoint,
    set_rng_state,
)

NEW = ".new"
REST = "training.pth"
DESCRIPTION_FILE = ".metadata"
CLASSES_IN_DESCRIPTION = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "bool"},
}


def save_sharded(folder: str | Path, model, optimizer, scheduler=None, **belongings) -> None:
    """Write a checkpoint into ``folder``; all processes call it, and see the same folder.

    ``belongings`` are those of ``save_checkpoint``.
    """
    folder, is_main = Path(folder), dist.get_rank() == 0
    new = folder / NEW
    if is_main:
        shutil.rmtree(new, ignore_errors=True)  # left by processes that were killed
        new.mkdir(parents=True)
    dist.barrier()
    tensors, groups = _tensors_of(model, optimizer)
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(new))  # returns when all have written
    if is_main:
        rest = checkpoint_content(model, optimizer, scheduler, **belongings)
        rest |= {"model": None, "optimizer": groups}
        _write_rest(new, rest)
        _take_the_place(folder, new, rest["progress"].get("step", 0))
    dist.barrier()


def _tensors_of(model, optimizer) -> tuple[dict, list]:
    """What ``torch.distributed.checkpoint`` saves, and the optimizer's groups, with names."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # an evaluation leaves parts of the model whole
    weights, optimizer_state = get_state_dict(model, optimizer)
    tensors = {"model": weights, "optimizer": optimizer_state["state"]}
    return tensors, optimizer_state["param_groups"]


def _write_rest(new: Path, rest: dict) -> None:
    rest["sizes"] = {path.name: path.stat().st_size for path in new.iterdir()}
    with atomic_write(new / REST) as temporary:
        torch.save(rest, temporary)


def _take_the_place(folder: Path, new: Path, step: int) -> None:
    """Make the new checkpoint the newest, and then remove the others."""
    old = _complete(folder)
    name = f"step-{step:08d}"
    again = sum(path.name.startswith(name) for path in old)  # saved twice after the same update
    new.rename(folder / f"{name}.{again}")
    flush_to_disk(folder)
    for path in old:
        shutil.rmtree(path, ignore_errors=True)


def _complete(folder: Path) -> list[Path]:
    return sorted(Path(folder).glob("step-*"))


def newest(folder: str | Path) -> Path:
    """The newest checkpoint in a folder; ``FileNotFoundError`` if there is none."""
    found = _complete(Path(folder))
    if not found:
        raise FileNotFoundError(f"there is no checkpoint in {folder}")
    return found[-1]


def load_sharded(folder: str | Path, model, optimizer, scheduler=None, **belongings) -> dict:
    """Restore what ``save_sharded`` saved, on any number of processes; return ``progress``.

    Raises ``CheckpointError``, before anything is changed, as ``load_checkpoint`` does.
    """
    path = newest(folder)
    rest, metadata = read_rest(path), read_metadata(path)
    tensors, groups = _tensors_of(model, optimizer)
    check_belongings(path, rest, belongings)
    check_tensors(path, _saved_tensors(metadata, "model."), tensors["model"])
    _check_groups(path, rest, optimizer, groups)
    check_scheduler(path, rest, scheduler)

    _read_tensors(path, tensors)
    state = {"state": tensors["optimizer"], "param_groups": rest["optimizer"]}
    set_state_dict(model, optimizer, model_state_dict=tensors["model"], optim_state_dict=state)
    if scheduler is not None:
        scheduler.load_state_dict(rest["scheduler"])
    set_rng_state(rest["rng"])
    return rest["progress"]


def _check_groups(path: Path, rest: dict, optimizer, groups: list) -> None:
    name = type(optimizer).__name__
    if rest["optimizer_class"] != name:
        raise CheckpointError(f"{path}: saved with {rest['optimizer_class']}, this is {name}")
    saved, wanted = ([group["params"] for group in each] for each in (rest["optimizer"], groups))
    if saved != wanted:
        raise CheckpointError(f"{path}: the optimizer has other groups of parameters than this one")


def read_rest(path: Path) -> dict:
    """All but the tensors; ``CheckpointError`` if a file is missing or has another size."""
    rest = read_checkpoint(path / REST)
    for name, size in rest["sizes"].items():
        found = (path / name).stat().st_size if (path / name).is_file() else 0
        if found != size:
            raise CheckpointError(
                f"{path} is damaged: {name} has {found:,} bytes instead of {size:,}"
            )
    return rest


def read_metadata(path: Path):
    """Which tensors a checkpoint has, and where; ``CheckpointError`` for anything else in it."""
    try:
        metadata = _MetadataUnpickler(io.BytesIO((path / DESCRIPTION_FILE).read_bytes())).load()
        kinds = {type(entry) for entry in metadata.state_dict_metadata.values()}
    except Exception as error:
        raise CheckpointError(f"{path / DESCRIPTION_FILE} cannot be read: {error}") from None
    if kinds - {TensorStorageMetadata}:
        raise CheckpointError(f"{path} holds more than tensors: no checkpoint of this project")
    return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """PyTorch describes a checkpoint with ``pickle``, which could run any code; this cannot."""

    def find_class(self, module: str, name: str):
        if module.split(".")[0] == "pathlib":
            return PurePath  # a Windows path can be read elsewhere too
        if name not in CLASSES_IN_DESCRIPTION.get(module, ()):
            raise CheckpointError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """PyTorch's reader, but for the metadata."""

    def read_metadata(self, *args, **kwargs):
        metadata = read_metadata(Path(self.path))
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = dcp.metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _read_tensors(path: Path, tensors: dict, **options) -> None:
    """Fill ``tensors`` in place."""
    try:
        dcp.load(tensors, storage_reader=_Reader(path), **options)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise CheckpointError(f"{path} is damaged: {reason[0]}") from error


def _saved_tensors(metadata, prefix: str) -> dict[str, torch.Tensor]:
    """Empty tensors, without memory, of the shapes that a checkpoint has under a prefix."""
    return {
        name.removeprefix(prefix): torch.empty(
            entry.size, dtype=entry.properties.dtype, device="meta"
        )
        for name, entry in metadata.state_dict_metadata.items()
        if name.startswith(prefix)
    }


def read_sharded_model(folder: str | Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The configuration and the whole weights of the newest checkpoint, in one process.

    The optimizer's numbers are not read.
    """
    path = newest(folder)
    rest, metadata = read_rest(path), read_metadata(path)
    shapes = _saved_tensors(metadata, "model.")
    tensors = {name: torch.empty_like(t, device="cpu") for name, t in shapes.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as intended
        _read_tensors(path, {"model": tensors}, no_dist=True)
    return rest["config"], tensors
