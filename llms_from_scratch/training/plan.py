"""How much memory and time a training run will take, before one starts it.

Everything is per process. Weights, their gradients and AdamW's two running means are float32 each;
with ``fsdp``, a process has its part of them only. What the forward pass keeps for the backward
pass is found by running it on PyTorch's ``meta`` device, where nothing is computed or stored.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.flops import bytes_kept_for_backward, forward_flops, training_flops

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class PlannedRun:
    """What is to be trained, and how; ``batch_size`` counts the rows of all ``ranks`` together."""

    cfg: dict
    batch_size: int
    parallel: str | None = None
    ranks: int = 1
    dtype: str = "float32"
    activation_checkpointing: bool = False
    accumulate: int = 1

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.ranks > 1 and self.parallel is None:
            raise ValueError(f"{self.ranks} ranks need a way to share the work: ddp or fsdp")
        if self.ranks < 1 or self.batch_size < 1 or self.batch_size % self.ranks:
            raise ValueError(
                f"a batch of {self.batch_size} rows cannot be dealt evenly to {self.ranks} ranks"
            )

    @property
    def rows(self) -> int:
        """Rows that one process computes at a time."""
        return self.batch_size // self.ranks


def memory(run: PlannedRun) -> dict[str, int]:
    """Bytes that one process needs, by purpose; not all at the same time, see ``peak``."""
    whole, block = count_parameters(run.cfg)
    own = whole // run.ranks if run.parallel == "fsdp" else whole
    return {
        "weights": FLOAT32 * own,
        "gradients": FLOAT32 * own,
        "AdamW": 2 * FLOAT32 * own,
        "weights in use": _weights_in_use(run, whole, block),
        "masks": run.cfg["n_layers"] * run.cfg["context_length"] ** 2,  # one byte each
        "activations": _activations(run),  # kept between forward and backward pass
        "logits": 3 * _logits(run),  # of probabilities the logarithms, and two gradients
        "one block": _block_activations(run),
    }


def peak(run: PlannedRun) -> int:
    """Bytes that one process needs at most.

    Gradients come while activations go. So the peak is at the start of the backward pass, when all
    activations are there; or in its first block, where it ends, with the gradients of the others;
    or behind it, with all gradients.
    What PyTorch and CUDA need for themselves, half a gigabyte to one on a GPU, is not included.
    """
    sizes = memory(run)
    always = sum(sizes[name] for name in ("weights", "AdamW", "weights in use", "masks"))
    start = sizes["activations"] + sizes["logits"]
    if run.accumulate > 1:  # there are gradients of the batches before
        start += sizes["gradients"]
    embeddings = (run.cfg["vocab_size"] + run.cfg["context_length"]) * run.cfg["emb_dim"]
    yet_to_come = (count_parameters(run.cfg)[1] + embeddings) / count_parameters(run.cfg)[0]
    in_first_block = sizes["gradients"] * (1 - yet_to_come) + sizes["one block"]
    return always + max(start, int(in_first_block), sizes["gradients"])


def count_parameters(cfg: dict) -> tuple[int, int]:
    """Numbers of a ``GPTModel``, and of one of its blocks.

    >>> from llms_from_scratch.ch04 import GPT_CONFIG_124M
    >>> count_parameters(GPT_CONFIG_124M)
    (163009536, 7085568)
    """
    with torch.device("meta"):
        model = GPTModel(cfg | {"n_layers": 1})
    block = sum(p.numel() for p in model.trf_blocks.parameters())
    rest = sum(p.numel() for p in model.parameters()) - block
    return rest + cfg["n_layers"] * block, block


def _weights_in_use(run: PlannedRun, whole: int, block: int) -> int:
    """Copies in the precision of the computation.

    With ``fsdp``, those that belong to no block, and two blocks: one is computed while the next one
    arrives. Else all, if they are not float32 anyway.
    """
    size = DTYPES[run.dtype].itemsize
    if run.parallel == "fsdp":
        return size * (whole - run.cfg["n_layers"] * block + 2 * block)
    return size * whole if run.dtype != "float32" else 0


def _logits(run: PlannedRun) -> int:
    return FLOAT32 * run.rows * run.cfg["context_length"] * run.cfg["vocab_size"]


def _activations(run: PlannedRun) -> int:
    block = _block_activations(run)
    rest = _kept(run, layers=1) - block - _logits(run)
    if run.activation_checkpointing:  # only the input of each block is kept
        tokens = run.rows * run.cfg["context_length"]
        block = tokens * run.cfg["emb_dim"] * DTYPES[run.dtype].itemsize
    return rest + run.cfg["n_layers"] * block


def _block_activations(run: PlannedRun) -> int:
    return _kept(run, layers=2) - _kept(run, layers=1)


def _kept(run: PlannedRun, layers: int) -> int:
    """Bytes that a model of so many blocks keeps for its backward pass."""
    with torch.device("meta"):
        model = GPTModel(run.cfg | {"n_layers": layers}).to(DTYPES[run.dtype])
        ids = torch.zeros(run.rows, run.cfg["context_length"], dtype=torch.long)
    return bytes_kept_for_backward(
        model, lambda: cross_entropy(model(ids).float().flatten(0, 1), ids.flatten())
    )


def flops_per_token(run: PlannedRun) -> float:
    """Forward and backward pass, and with checkpointing a second forward pass of the blocks."""
    length = run.cfg["context_length"]
    flops = training_flops(run.cfg, 1, length)
    if run.activation_checkpointing:
        forward = forward_flops(run.cfg, 1, length)
        flops += sum(forward.values()) - forward["output layer"]
    return flops / length


def hours(
    run: PlannedRun,
    tokens: float,
    *,
    tokens_per_second: float | None = None,
    tflops: float | None = None,
) -> float:
    """Time for so many tokens, at a speed of all processes together, or at TFLOP/s of each."""
    if tokens_per_second is None:
        tokens_per_second = run.ranks * tflops * 1e12 / flops_per_token(run)
    return tokens / tokens_per_second / 3600
