"""Linear layers for one token at a time, which is how text is generated."""

import functools

import torch
import torch.nn as nn


LARGE = 1 << 17  # numbers; a smaller matrix is read in less time than cutting it takes


def apply_layer(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``layer(x)``, where a linear layer sees one or two tokens on a CPU: with all its cores.

    For a single token, a linear layer is a matrix times a vector, whose time is that of reading the
    matrix. MKL, PyTorch's library for it, leaves that to one core, which cannot keep the memory
    busy; but of several independent products, it gives some to each core. So the matrix is cut into
    parts, without a copy. The result is the same to rounding; hooks of the layer are not called.
    """
    if not (
        x.shape[0] * x.shape[1] <= 2
        and type(layer) is nn.Linear
        and layer.weight.numel() >= LARGE
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and layer.weight.is_contiguous()
        and torch.backends.mkl.is_available()
    ):
        return layer(x)
    d_out, d_in = layer.weight.shape
    parts = _number_of_parts(d_out, torch.get_num_threads())
    if parts == 1:
        return layer(x)
    weights = layer.weight.view(parts, d_out // parts, d_in)
    columns = x.reshape(-1, d_in).t().expand(parts, d_in, -1)  # (parts, d_in, tokens)
    if layer.bias is None:
        out = torch.bmm(weights, columns)  # (parts, d_out / parts, tokens)
    else:
        out = torch.baddbmm(layer.bias.view(parts, -1, 1), weights, columns)
    return out.view(d_out, -1).t().reshape(*x.shape[:-1], d_out)


@functools.cache
def _number_of_parts(d_out: int, threads: int) -> int:
    """The smallest divisor of ``d_out`` that gives each thread a part; 1 if there is no good one.

    >>> _number_of_parts(768, 2), _number_of_parts(50257, 2), _number_of_parts(768, 1)
    (2, 29, 1)
    """
    candidates = range(threads, min(32 * threads, d_out) + 1)
    return next((n for n in candidates if d_out % n == 0), 1)
