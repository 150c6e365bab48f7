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
from llms_from_scratch.gemma3 import Gemma3Model
from llms_from_scratch.gemma4 import Gemma4DenseModel
from llms_from_scratch.llama2 import Llama2Model
from llms_from_scratch.llama3 import Llama3Model
from llms_from_scratch.olmo3 import Olmo3Model
from llms_from_scratch.qwen3 import Qwen3Model
from llms_from_scratch.qwen3_5 import Qwen3_5Model
from llms_from_scratch.tiny_aya import TinyAyaModel

GPT_CLASSES = {"GPTModel": GPTModel, "GPTModelFast": GPTModelFast}
MODEL_CLASSES = GPT_CLASSES | {
    "Llama2Model": Llama2Model,
    "Llama3Model": Llama3Model,
    "Qwen3Model": Qwen3Model,
    "Gemma3Model": Gemma3Model,
    "Olmo3Model": Olmo3Model,
    "TinyAyaModel": TinyAyaModel,
    "Qwen3_5Model": Qwen3_5Model,
    "Gemma4DenseModel": Gemma4DenseModel,
}
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


def find_model_class(
    tensors: dict, config: dict, num_classes: int | None = None, likely: str = "GPTModel"
) -> str:
    """The name of the class whose model of this configuration has exactly these tensors.

    With ``num_classes``, its output layer is a classifier's (chapter 6). ``ValueError`` names a
    tensor that no such model has, or that is missing; or what is wrong with the configuration for
    the ``likely`` class, if it suits none.
    """
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differences, errors = {}, {}
    for name, model_class in MODEL_CLASSES.items():
        try:
            wanted = _shapes_of(model_class, config, num_classes)
        except ValueError as error:  # the configuration is of another architecture
            errors[name] = error
            continue
        keys = [key for key in {**wanted, **given} if wanted.get(key) != given.get(key)]
        if not keys:
            return name
        differences[name] = (len(keys), keys[0], given.get(keys[0]), wanted.get(keys[0]))
    if not differences:
        raise errors.get(likely, errors["GPTModel"])
    name, (_, key, shape, expected) = min(differences.items(), key=lambda item: item[1][0])
    raise ValueError(
        f"the model could not be read again: its tensor {key!r} is {shape or 'missing'}, while a "
        f"{name} of the given configuration has {expected or 'none of this name'}"
    )


def _shapes_of(model_class: type, config: dict, num_classes: int | None) -> dict:
    with torch.device("meta"):  # shapes without memory
        shapes = {key: tuple(t.shape) for key, t in model_class(config).state_dict().items()}
    if num_classes is not None:
        shapes["out_head.weight"] = (num_classes, config["emb_dim"])
        shapes["out_head.bias"] = (num_classes,)
    return shapes


def describe_model(
    model: nn.Module, tensors: dict, config: dict, num_classes: int | None = None
) -> dict:
    """What settings must say of a model so that it can be read again from its ``tensors``.

    Its "config", and, unless it is a ``GPTModel`` of float32, its "model_class" and the "dtype"
    that holds all its numbers exactly. If its output layer is the token embedding, the settings
    (of a GPT) or the configuration (of others) say so. Raises as ``find_model_class`` does.
    """
    likely = type(without_wrappers(model)).__name__
    model_class = find_model_class(tensors, config, num_classes, likely)
    dtypes = [t.dtype for t in tensors.values() if t.is_floating_point()]
    dtype = str(reduce(torch.promote_types, dtypes)).removeprefix("torch.")
    found = {"model_class": model_class, "dtype": dtype}
    if model_class in GPT_CLASSES:
        found["tied"] = head_is_embedding(model)
    elif num_classes is None and head_is_embedding(model) != bool(config.get("tie_embeddings")):
        config = config | {"tie_embeddings": head_is_embedding(model)}
    usual = {"model_class": "GPTModel", "dtype": "float32", "tied": False}
    described = {key: value for key, value in found.items() if value != usual[key]}
    return {"config": config_for_json(config)} | described


def without_wrappers(model: nn.Module) -> nn.Module:
    """The model inside of ``torch.compile`` and data parallelism."""
    while inner := _name_of_wrapped(model):
        model = getattr(model, inner)
    return model


def head_is_embedding(model: nn.Module) -> bool:
    """Whether the output layer and the token embedding of a model are one tensor."""
    state = plain_state_dict(model)
    head, embedding = state.get("out_head.weight"), state.get("tok_emb.weight")
    if head is None or embedding is None or head.shape != embedding.shape:
        return False
    return head.data_ptr() == embedding.data_ptr()


def config_for_json(config: dict) -> dict:
    """A configuration whose data type is a text; ``read_settings`` turns it back.

    >>> config_for_json({"emb_dim": 8, "dtype": torch.bfloat16})
    {'emb_dim': 8, 'dtype': 'bfloat16'}
    """
    if not isinstance(config.get("dtype"), torch.dtype):
        return config
    return config | {"dtype": str(config["dtype"]).removeprefix("torch.")}


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
    if not isinstance(settings, dict):
        raise ValueError(f"{path} does not describe a saved model: it holds no JSON object")
    _check_choice(path, settings, "model_class", tuple(MODEL_CLASSES))
    _check_choice(path, settings, "dtype", DTYPES)
    config = settings.get("config")
    if isinstance(config, dict) and config.get("dtype") is not None:
        _check_choice(path, config, "dtype", DTYPES)
        settings["config"] = config | {"dtype": getattr(torch, config["dtype"])}
    return settings


def _check_choice(path: str | Path, values: dict, key: str, known: tuple[str, ...]) -> None:
    if values.get(key, known[0]) not in known:  # the first is what is not written down
        raise ValueError(f"{path}: {key} must be one of {known}, got {values[key]!r}")


def new_model(settings: dict, config: dict | None = None) -> nn.Module:
    """A model, still random, of the class and precision that ``read_settings`` found."""
    model_class = MODEL_CLASSES[settings.get("model_class", "GPTModel")]
    model = model_class(settings["config"] if config is None else config)
    model.to(getattr(torch, settings.get("dtype", DTYPES[0])))
    if settings.get("tied"):
        model.out_head.weight = model.tok_emb.weight
    return model


def same_value(a, b) -> bool:
    """Whether two values of ``plain_value`` are equal; NaN equals NaN, and tensors by content."""
    if type(a) is not type(b) and {type(a), type(b)} - {bool, int, float, dict, OrderedDict}:
        return False
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_value(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_value, a, b))
    return a == b or (a != a and b != b)  # only NaN differs from itself
