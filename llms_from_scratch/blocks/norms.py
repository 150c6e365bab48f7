"""Root-mean-square normalization, as Llama and all that came after use it.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
"""

import torch
import torch.nn as nn


def rms_normalize(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Divide the last dimension by the root of its mean square; computed, and returned, in float32.

    >>> rms_normalize(torch.tensor([3.0, 4.0, 0.0, 0.0]), eps=0.0)  # the mean square is 6.25
    tensor([1.2000, 1.6000, 0.0000, 0.0000])
    """
    x = x.float()  # the square of a small half-precision number would be 0
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    """Bring the last dimension to mean square 1, then scale it; no mean is subtracted, no shift.

    Input and output (..., emb_dim). LayerNorm of chapter 4 without two of its four steps: models
    learn as well without them.
    """

    def __init__(self, emb_dim: int, eps: float = 1e-5, dtype: torch.dtype | None = None):
        super().__init__()
        self.eps = eps
        self.emb_dim = emb_dim
        self.weight = nn.Parameter(torch.ones(emb_dim, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * rms_normalize(x, self.eps).to(x.dtype)


class Gemma4RMSNorm(nn.Module):
    """Root-mean-square normalization in float32, scaled by ``weight`` if ``with_scale``."""

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        with_scale: bool = True,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, dtype=dtype)) if with_scale else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = rms_normalize(x, self.eps)
        return (normed if self.weight is None else normed * self.weight.float()).to(x.dtype)
