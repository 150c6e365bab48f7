"""Cross entropy of a large vocabulary in little memory: the logits exist a few rows at a time.

The logits of a batch are a GPT's largest tensor: at 32 rows of 1,024 tokens and 50,257 classes
they take 6.6 GB in float32, and cross entropy makes two more of that size. But a row's loss and
gradient need that row's logits only. So rows are taken in chunks, and for each chunk both are
computed at once: with the probabilities at hand, the gradient costs no second pass.

The gradient of a row's loss by its logits is ``softmax(logits) - one_hot(target)``.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

ROWS_IN_CACHE = 32


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    chunk_size: int = 1024,
    ignore_index: int = -100,
    num_classes: int | None = None,
) -> torch.Tensor:
    """``cross_entropy(hidden @ weight.T, targets)`` with ``chunk_size`` rows of logits at a time.

    ``hidden`` is (..., emb_dim), what the output layer gets; ``weight`` (vocab_size, emb_dim) is
    that layer's; ``targets`` are ids of shape (...). The result is the mean over all targets that
    are not ``ignore_index``, in float32 or better. Rows of ``weight`` from ``num_classes`` on are
    padding: they get no probability and no gradient. Under autocast, products are in its type.

    Raises ``ValueError`` for shapes that do not fit, and on the CPU for targets that are no class
    and if all are ignored; on a GPU, which a look at them would make wait, that gives NaN.

    >>> hidden, weight = torch.eye(2), torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 0.0]])
    >>> round(chunked_cross_entropy(hidden, weight, torch.tensor([0, 1]), chunk_size=1).item(), 5)
    0.00025
    """
    num_classes = len(weight) if num_classes is None else num_classes
    _check_fit(hidden, weight, targets, chunk_size, num_classes)
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_targets(targets, num_classes, ignore_index)
    device_type, dtype = hidden.device.type, torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    rows, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)  # (N, emb_dim), (N,)
    if not torch.is_grad_enabled():
        rows, weight = rows.detach(), weight.detach()  # no gradient is computed for nothing
    with torch.autocast(device_type, enabled=False):
        return ChunkedCrossEntropy.apply(
            rows, weight, targets, chunk_size, ignore_index, num_classes, dtype
        )


class ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients chunk by chunk, in the forward pass; see ``chunked_cross_entropy``."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk_size, ignore_index, num_classes, dtype):
        exact = torch.promote_types(dtype, torch.float32)  # what is summed over rows
        counted = (targets != ignore_index)[:, None]  # (N, 1)
        classes = targets[:, None].where(counted, 0)  # of a row that does not count, any class
        share = counted.to(exact) / counted.sum()  # of each row in the mean, (N, 1)
        matrix = weight.to(dtype)
        loss = torch.zeros((), dtype=exact, device=hidden.device)
        with_hidden, with_weight, *_ = ctx.needs_input_grad
        d_hidden = torch.empty_like(hidden) if with_hidden else None  # (N, emb_dim)
        d_weight = None  # (vocab_size, emb_dim)
        for start in range(0, len(hidden), chunk_size):
            part = slice(start, start + chunk_size)
            x = hidden[part].to(dtype)  # (n, emb_dim)
            logits = x @ matrix.T  # (n, vocab_size)
            loss += logits_to_gradient_(logits, classes[part], share[part], num_classes)
            if with_hidden:
                d_hidden[part] = logits @ matrix
            if with_weight:
                product = logits.T @ x  # (vocab_size, emb_dim)
                d_weight = product if d_weight is None else d_weight.to(exact).add_(product)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss):
        gradients = []
        is_one = d_loss.device.type == "cpu" and d_loss.item() == 1  # a GPU must not be waited for
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True):
            if gradient is not None and not is_one:
                gradient = gradient * d_loss
            gradients.append(None if gradient is None else gradient.to(dtype))
        return *gradients, None, None, None, None, None


def logits_to_gradient_(
    logits: torch.Tensor, classes: torch.Tensor, share: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Cross entropy of logits (n, vocab_size), which are overwritten with its gradient.

    ``classes`` (n, 1) are the targets, ``share`` (n, 1) is what each row counts in the sum that is
    returned. Columns from ``num_classes`` on are padding.
    """
    logits[:, num_classes:] = -torch.inf
    loss = torch.zeros((), dtype=share.dtype, device=logits.device)
    # On a CPU a few rows at a time, so that their probabilities stay in its cache
    size = ROWS_IN_CACHE if logits.device.type == "cpu" else len(logits)
    for rows, ids, shares in zip(*(t.split(size) for t in (logits, classes, share)), strict=True):
        log_probs = F.log_softmax(rows, dim=-1, dtype=share.dtype)
        loss -= (log_probs.gather(1, ids) * shares).sum()
        gradient = log_probs.exp_().mul_(shares).scatter_add_(1, ids, -shares)
        rows.copy_(gradient)  # in the type of the logits
    return loss


def _check_fit(hidden, weight, targets, chunk_size: int, num_classes: int) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if weight.dim() != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} do not fit: they must "
            "be (..., emb_dim) and (vocab_size, emb_dim)"
        )
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"there must be one target for each row: hidden is {tuple(hidden.shape)}, targets are "
            f"{tuple(targets.shape)}"
        )
    if not 1 <= num_classes <= len(weight):
        raise ValueError(f"num_classes must be from 1 to {len(weight)}, got {num_classes}")


def _check_targets(targets: torch.Tensor, num_classes: int, ignore_index: int) -> None:
    counted = targets[targets != ignore_index]
    if counted.numel() == 0:
        raise ValueError(
            f"all {targets.numel()} targets are ignored (ignore_index {ignore_index}), so there is "
            "no loss: leave such batches out"
        )
    low, high = counted.min().item(), counted.max().item()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"target {low if low < 0 else high} is no class, 0 to {num_classes - 1}; targets that "
            f"do not count must be {ignore_index}"
        )
