"""The same parameters under other classes: how a model of chapter 4 comes to use a cache."""

import copy

import torch.nn as nn


def use_classes(module: nn.Module, table: dict[type, type]) -> None:
    """Let each part of a module compute as the class that the table has for its own class.

    Parts are exchanged for shallow copies: parameters and buffers are the very same tensors, the
    module that they were taken from stays as it was.
    """
    for name, child in module._modules.items():
        twin = copy.copy(child)
        twin.__class__ = table.get(type(child), type(child))
        twin._modules = dict(child._modules)
        use_classes(twin, table)
        module._modules[name] = twin


def split_window(cfg: dict) -> tuple[dict, int | None]:
    """A configuration without its ``kv_window_size``, for chapter 4's model, and that number."""
    window = cfg.get("kv_window_size")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(f"kv_window_size must be a number from 1 on, or None; got {window!r}")
    return {key: value for key, value in cfg.items() if key != "kv_window_size"}, window
