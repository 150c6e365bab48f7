"""How much arithmetic and memory a GPT needs, before one runs it.

A FLOP is one addition or multiplication of floating-point numbers: the product of an (n, k) and a
(k, m) matrix takes n * m * k multiplications and as many additions, 2 * n * k * m FLOPs. Matrix
products are counted, and nothing else: norms, GELU and softmax are below 1 % of a GPT's arithmetic.

Sources: Kaplan et al., "Scaling Laws for Neural Language Models" (2020), section 2.1; Chowdhery et
al., "PaLM" (2022), appendix B, for the utilization of a machine.
"""

import time
from collections.abc import Callable

import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

from llms_from_scratch.ch04 import check_config


def matmul_flops(n: int, k: int, m: int) -> int:
    """FLOPs of an (n, k) times a (k, m) matrix.

    >>> matmul_flops(2, 3, 4)
    48
    """
    return 2 * n * k * m


def forward_flops(cfg: dict, batch_size: int, num_tokens: int) -> dict[str, int]:
    """FLOPs of one forward pass of ``GPTModel(cfg)`` on (batch_size, num_tokens) ids, by part.

    Attention is counted as chapter 3 computes it, masked pairs of tokens included. Raises
    ``ValueError`` if the configuration is not complete or ``num_tokens`` is above its
    ``context_length``.
    """
    check_config(cfg)
    if num_tokens > cfg["context_length"]:
        raise ValueError(f"got {num_tokens=}, but context_length is {cfg['context_length']}")
    tokens = batch_size * num_tokens
    width, layers, heads = cfg["emb_dim"], cfg["n_layers"], cfg["n_heads"]
    projection = matmul_flops(tokens, width, width)
    head_dim = width // heads
    # For each head: (num_tokens, head_dim) times (head_dim, num_tokens), and back
    pairs = batch_size * heads * matmul_flops(num_tokens, head_dim, num_tokens)
    return {
        "query, key, value": layers * 3 * projection,
        "attention scores": layers * pairs,
        "weighted values": layers * pairs,
        "output projection": layers * projection,
        "feed-forward": layers * 2 * matmul_flops(tokens, width, 4 * width),
        "output layer": matmul_flops(tokens, width, cfg["vocab_size"]),
    }


def training_flops(cfg: dict, batch_size: int, num_tokens: int) -> int:
    """FLOPs of a forward and a backward pass: three times those of the forward pass.

    Behind each product of inputs and weights, the backward pass has two of the same size: one
    for the gradient of the inputs, one for that of the weights.
    """
    return 3 * sum(forward_flops(cfg, batch_size, num_tokens).values())


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products that PyTorch does while ``run()`` runs.

    On the ``meta`` device nothing is computed or stored, and the count is the same.

    >>> layer = nn.Linear(3, 4, device="meta")
    >>> count_flops(lambda: layer(torch.ones(2, 3, device="meta")))
    48
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def bytes_kept_for_backward(module: nn.Module, run: Callable[[], object]) -> int:
    """Bytes of activations that a forward pass ``run()`` of ``module`` keeps for its backward pass.

    Weights and buffers are not counted, and memory that several results share counts once. What is
    needed for a moment only (the peak of a GPU is higher by that) is not included. Works on the
    ``meta`` device too, but fused attention is taken apart there and keeps more than elsewhere.
    """
    own = {_storage_key(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if _storage_key(tensor) not in own:
            kept[_storage_key(tensor)] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()  # alive until the end, so that no memory is used twice
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total


def _storage_key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # data_ptr() is 0 for everything on the meta device


def training_memory(model: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """Bytes that a training step with AdamW needs; ``run()`` is its forward pass up to the loss.

    >>> layer = nn.Linear(100, 10, bias=False, device="meta")
    >>> sizes = training_memory(layer, lambda: layer(torch.ones(5, 100, device="meta")).sum())
    >>> sizes["weights"], sizes["AdamW"], sizes["activations"]  # 1000, 2000 and 500 floats
    (4000, 8000, 2000)
    """
    weights = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    trainable = sum(size for size, requires_grad in weights if requires_grad)
    return {
        "weights": sum(size for size, _ in weights),
        "buffers": sum(b.numel() * b.element_size() for b in model.buffers()),
        "gradients": trainable,  # frozen weights have none
        "AdamW": 2 * trainable,  # running means of the gradients and of their squares
        "activations": bytes_kept_for_backward(model, run),
    }


def matmul_ceiling(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    size: int = 1024,
    rounds: int = 10,
) -> float:
    """The most FLOPs per second that ``device`` reached in products of (size, size) matrices.

    The best of ``rounds`` products, after two that are not counted.
    """
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for number in range(rounds + 2):
        seconds = seconds_of(lambda: a @ b, device)
        best = min(best, seconds) if number >= 2 else best
    return matmul_flops(size, size, size) / best


def seconds_of(run: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Seconds of one call of ``run()``, the work that it queued on a GPU included."""
    _wait_for(device)
    started = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device | str) -> None:
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize()
    elif kind == "mps":
        torch.mps.synchronize()
