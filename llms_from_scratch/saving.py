"""What is written when a model is saved: tensors under plain names, and values that can be read.

``torch.compile`` and data parallelism wrap a model and put the wrapper's name before the names of
its tensors; LoRA (appendix E) does so with linear layers. A file should not depend on them.
"""

import json
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable
from functools import reduce
from pathlib import Path, PurePath

import numpy as np
import torch
import torch.nn as nn

from llms_from_scratch.ch04 import GPTModel, GPTModelFast

MODEL_CLASSES = {"GPTModel": GPTModel, "GPTModelFast": GPTModelFast}
DTYPES = ("float32", "bfloat16", "float16", "float64")
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def plain_names(model: nn.Module) -> dict[str, str]:
    """The name of each tensor in a model's state, and the one that it has without wrappers.

    >>> layer = nn.DataParallel(nn.Linear(2, 1))
    >>> plain_names(layer)
    {'module.weight': 'weight', 'module.bias': 'bias'}
    """
    plain = {name: name for name in model.state_dict()}
    modules = model.named_modules(remove_duplicate=False)
    for path, module in reversed(list(modules)):  # inner wrappers before outer ones
        if inner := _name_of_wrapped(module):
            outer = f"{path}." if path else ""
            for name, shorter in plain.items():
                if shorter.startswith(f"{outer}{inner}."):
                    plain[name] = outer + shorter.removeprefix(f"{outer}{inner}.")
    return plain


def _name_of_wrapped(module: nn.Module) -> str | None:
    if isinstance(getattr(module, "_orig_mod", None), nn.Module):  # from torch.compile
        return "_orig_mod"
    return "module" if isinstance(module, WRAPPERS) else None


def plain_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model under plain names. The tensors are the model's own, not copies."""
    state = model.state_dict()
    return {plain: state[name] for name, plain in plain_names(model).items()}


def load_plain_state_dict(model: nn.Module, tensors: dict, strict: bool = True) -> None:
    """Copy tensors with plain names into a model, whatever wraps it.

    With ``strict=False``, those that are not given stay as they are.
    """
    names = plain_names(model).items()
    state = {name: tensors[plain] for name, plain in names if strict or plain in tensors}
    model.load_state_dict(state, strict=strict)


def lora_layers(model: nn.Module, merged: bool) -> list[str]:
    """The names of the LoRA layers of a model (appendix E) that are merged, or that are not."""
    return [
        name
        for name, module in model.named_modules()
        if hasattr(module, "lora") and getattr(module, "merged", None) is merged
    ]


def merged_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model on the CPU under their usual names, also with merged LoRA layers.

    Raises ``ValueError`` for a LoRA layer that is not merged: what it has learned would be lost.
    """
    if unmerged := lora_layers(model, merged=False):
        raise ValueError(f"the LoRA layer {unmerged[0]!r} is not merged: call merge_lora first")
    state = plain_state_dict(model)
    replaced = {name.removesuffix("lora.A") for name in state if name.endswith(".lora.A")}
    tensors = {}
    for name, tensor in state.items():
        layer = next((prefix for prefix in replaced if name.startswith(prefix)), None)
        if layer is None:
            tensors[name] = tensor.cpu()
        elif name.startswith(f"{layer}linear."):
            tensors[layer + name.removeprefix(f"{layer}linear.")] = tensor.cpu()
    return tensors


def find_model_class(tensors: dict, config: dict, num_classes: int | None = None) -> str:
    """The name of the class whose model of this configuration has exactly these tensors.

    With ``num_classes``, its output layer is a classifier's (chapter 6). ``ValueError`` names a
    tensor that no such model has, or that is missing.
    """
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differences = {}
    for name, model_class in MODEL_CLASSES.items():
        with torch.device("meta"):  # shapes without memory
            wanted = {key: tuple(t.shape) for key, t in model_class(config).state_dict().items()}
        if num_classes is not None:
            wanted["out_head.weight"] = (num_classes, config["emb_dim"])
            wanted["out_head.bias"] = (num_classes,)
        keys = [key for key in {**wanted, **given} if wanted.get(key) != given.get(key)]
        if not keys:
            return name
        differences[name] = (len(keys), keys[0], given.get(keys[0]), wanted.get(keys[0]))
    name, (_, key, shape, expected) = min(differences.items(), key=lambda item: item[1][0])
    raise ValueError(
        f"the model could not be read again: its tensor {key!r} is {shape or 'missing'}, while a "
        f"{name} of the given configuration has {expected or 'none of this name'}"
    )


def describe_model(tensors: dict, config: dict, num_classes: int | None = None) -> dict:
    """What settings must say of a model, besides its configuration, so that it can be read again.

    ``{}`` for a ``GPTModel`` of float32, else its "model_class" and the "dtype" that holds all its
    numbers exactly. Raises ``ValueError`` as ``find_model_class`` does.
    """
    model_class = find_model_class(tensors, config, num_classes)
    dtypes = [t.dtype for t in tensors.values() if t.is_floating_point()]
    dtype = str(reduce(torch.promote_types, dtypes)).removeprefix("torch.")
    found = {"model_class": model_class, "dtype": dtype}
    usual = {"model_class": "GPTModel", "dtype": "float32"}
    return {key: value for key, value in found.items() if value != usual[key]}


def plain_value(value, where: str, for_json: bool = False):
    """A value as a file can hold it: NumPy's numbers become Python's, and paths become texts.

    Containers are converted with all that is in them. Checkpoints may hold tensors, JSON may not.
    Raises ``ValueError`` for anything that would not be read back, and says where it is.

    >>> plain_value({"lr": np.float64(0.5), "text": PurePath("a.txt")}, "config")
    {'lr': 0.5, 'text': 'a.txt'}
    """
    kind = type(value)
    if kind in (type(None), bool, int, float, str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        return plain_value(value.item(), where, for_json)
    if kind in (list, tuple) or (kind is set and not for_json):
        return kind(plain_value(v, f"{where}[{i}]", for_json) for i, v in enumerate(value))
    if kind in (dict, defaultdict, OrderedDict, Counter):
        items = {
            _plain_key(k, where, for_json): plain_value(v, f"{where}[{k!r}]", for_json)
            for k, v in value.items()
        }
        return items if kind in (dict, defaultdict) else kind(items)
    others = (torch.Tensor, torch.dtype, torch.device, torch.Size, complex)
    if isinstance(value, others) and not for_json:
        return value
    raise ValueError(
        f"{where} is {value!r:.60}, which could not be read back from "
        f"{'JSON' if for_json else 'a checkpoint'}: use numbers, texts, lists and dictionaries"
    )


def _plain_key(key, where: str, for_json: bool):
    key = plain_value(key, f"a key of {where}", for_json)
    if for_json and not isinstance(key, str):
        raise ValueError(f"{where} has the key {key!r}: in JSON, keys are texts")
    return key


def read_settings(path: str | Path, keys: Iterable[str]) -> dict:
    """A JSON dictionary with at least these keys; ``ValueError`` for any other content."""
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    for key in keys:
        if not isinstance(settings, dict) or key not in settings:
            raise ValueError(f"{path} has no {key!r}, so it does not describe a saved model")
    for key, known in (("model_class", tuple(MODEL_CLASSES)), ("dtype", DTYPES)):
        if settings.get(key, known[0]) not in known:  # the first is what is not written down
            raise ValueError(f"{path}: {key} must be one of {known}, got {settings[key]!r}")
    return settings


def new_model(settings: dict, config: dict | None = None) -> nn.Module:
    """A model, still random, of the class and precision that ``read_settings`` found."""
    model_class = MODEL_CLASSES[settings.get("model_class", "GPTModel")]
    return model_class(config or settings["config"]).to(
        getattr(torch, settings.get("dtype", DTYPES[0]))
    )


def same_value(a, b) -> bool:
    """Whether two values of ``plain_value`` are equal; NaN equals NaN, and tensors by content."""
    if type(a) is not type(b) and {type(a), type(b)} - {bool, int, float, dict, OrderedDict}:
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_value(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_value, a, b))
    return a == b or (a != a and b != b)  # only NaN differs from itself
