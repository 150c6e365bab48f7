"""Tensors by name, from files of several formats, with shapes that are known before reading."""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from llms_from_scratch.data.archive import check_zip


@dataclass(frozen=True)
class TensorSource:
    """Where weights come from: ``shapes[name]`` costs nothing, ``read(name)`` reads one tensor."""

    description: str  # for error messages
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], torch.Tensor]

    def renamed(self, new_name: Callable[[str], str]) -> "TensorSource":
        """The same tensors under other names."""
        old_names = {new_name(name): name for name in self.shapes}
        return TensorSource(
            self.description,
            {new: self.shapes[old] for new, old in old_names.items()},
            lambda name: self.read(old_names[name]),
        )


def from_dict(tensors: Mapping[str, torch.Tensor], description: str) -> TensorSource:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return TensorSource(description, shapes, lambda name: torch.as_tensor(tensors[name]))


def from_safetensors(path: str | Path) -> TensorSource:
    """A safetensors file. Raises ``ValueError`` if it is truncated, too long or corrupt."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error

    def read(name: str) -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    return TensorSource(str(path), shapes, read)


def from_pth(path: str | Path) -> TensorSource:
    """A state dict saved with ``torch.save``. Code in the file is never executed.

    Raises ``ValueError`` if the file is damaged or holds anything but tensors by name. (The file is
    a zip archive; all its checksums are compared, in one pass that keeps nothing in memory.)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if zipfile.is_zipfile(path):  # else it is damaged, or older than PyTorch 1.6
            check_zip(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} cannot be read as a file of weights only: {reason}") from error
    is_state_dict = isinstance(tensors, dict) and all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    )
    if not is_state_dict:
        raise ValueError(f"{path} holds something else than a model's weights by name")
    return from_dict(tensors, str(path))
