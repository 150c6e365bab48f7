"""Tensors into a model by a table of names, with everything checked before the first is copied."""

import re
from collections.abc import Callable, Mapping

import torch
import torch.nn as nn

from llms_from_scratch.weights.sources import TensorSource

NOT_LEARNED = re.compile(
    r".*rotary_emb\.inv_freq"
)  # some files have the frequencies; we compute them


def their_name(ours: str, table: Mapping[str, str]) -> str:
    """The name in a file of one of our tensors; ``{}`` in the table stand for numbers.

    A name with its number comes first, for what is called differently in one layer.

    >>> table = {"trf_blocks.{}.norm1.weight": "model.layers.{}.input_layernorm.weight"}
    >>> their_name("trf_blocks.7.norm1.weight", table)
    'model.layers.7.input_layernorm.weight'
    """
    if ours in table:
        return table[ours]
    numbers = re.findall(r"(?<=\.)\d+(?=\.)", ours)
    return table[re.sub(r"(?<=\.)\d+(?=\.)", "{}", ours)].format(*numbers)


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """All that a file has of a model: parameters, and numbers that are kept but not learned."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = model.state_dict(keep_vars=True)
    return parameters | {name: t for name, t in kept.items() if name not in parameters}


def load_by_names(model: nn.Module, source: TensorSource, table: Mapping[str, str]) -> None:
    """Fill a model from a source, whose names of our tensors the table has, or has as ours.

    A missing, superfluous or misshapen tensor is a ``ValueError`` that names it, and the model
    stays as it was; so is one that has a NaN. Without a tensor for the output layer, that layer is
    the token embedding, one tensor for both. Parameters on the meta device become the tensors that
    are read; others are copied into. Tensors are read one at a time.
    """
    parameters = tensors_of(model)
    own_names = "tok_emb.weight" in source.shapes
    names = {ours: ours if own_names else their_name(ours, table) for ours in parameters}
    tied = names["out_head.weight"] not in source.shapes or model.cfg.get("tie_embeddings")
    if tied:
        head = names.pop("out_head.weight")
        _check_same_as_embedding(source, head, names["tok_emb.weight"])
    _check_shapes(source, names, parameters)
    _check_nothing_left(source, {*names.values(), *([head] if tied else [])})
    for ours, theirs in names.items():
        set_parameter(model, ours, _read(source, theirs))
    if tied:
        model.out_head.weight = model.tok_emb.weight


def set_parameter(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Give a parameter its values: a copy, or the tensor itself where it had no memory yet."""
    *path, leaf = name.split(".")
    module = model.get_submodule(".".join(path))
    old = getattr(module, leaf)
    if old.is_meta and isinstance(old, nn.Parameter):
        setattr(module, leaf, nn.Parameter(tensor.to(old.dtype), requires_grad=old.requires_grad))
    elif old.is_meta:
        setattr(module, leaf, tensor.to(old.dtype))
    else:
        with torch.no_grad():
            old.copy_(tensor)


def _read(source: TensorSource, name: str) -> torch.Tensor:
    tensor = source.read(name)
    # NaN and infinity show in the extremes, which need no second tensor of this size
    extremes = torch.stack(tensor.aminmax()) if tensor.numel() else tensor
    if not torch.isfinite(extremes).all():
        raise ValueError(
            f"{source.description}: tensor {name!r} has numbers that are not finite (NaN or "
            "infinity): the file is damaged, or its training diverged"
        )
    return tensor


def _check_shapes(source: TensorSource, names: Mapping[str, str], parameters: Mapping) -> None:
    for ours, theirs in names.items():
        wanted = tuple(parameters[ours].shape)
        if theirs not in source.shapes:
            raise ValueError(f"{source.description}: tensor {theirs!r} is missing")
        given = tuple(source.shapes[theirs])
        if given != wanted:
            raise ValueError(
                f"{source.description}: tensor {theirs!r} has shape {given}, wanted {wanted}"
            )


def _check_nothing_left(source: TensorSource, used: set[str]) -> None:
    for name in source.shapes:
        if name not in used and not NOT_LEARNED.fullmatch(name):
            raise ValueError(f"{source.description}: the model has no place for {name!r}")


def _check_same_as_embedding(source: TensorSource, head: str, embedding: str) -> None:
    if head in source.shapes and not torch.equal(source.read(head), source.read(embedding)):
        raise ValueError(
            f"{source.description}: {head!r} differs from {embedding!r}, but the configuration "
            "says that they are one (tie_embeddings)"
        )


def changed(
    source: TensorSource, change: Callable[[str, torch.Tensor], torch.Tensor]
) -> TensorSource:
    """A source whose tensors are changed, but not their shapes, as they are read."""
    return TensorSource(
        source.description, source.shapes, lambda name: change(name, source.read(name))
    )
