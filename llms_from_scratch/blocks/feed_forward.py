"""Gated feed-forward layers, one for all tokens or a choice of experts for each.

Sources: Shazeer, "GLU Variants Improve Transformer" (2020); Shazeer et al., "Outrageously Large
Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer" (2017).
"""

import torch
import torch.nn as nn
from torch.nn.functional import silu

from llms_from_scratch.blocks.linear import apply_layer


class FeedForward(nn.Module):
    """Two projections to ``hidden_dim``, of which one opens and closes the other; then back.

    Input and output (b, n, emb_dim). The gate goes through ``activation``: SiLU makes it SwiGLU.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        emb_dim, hidden_dim, dtype = cfg["emb_dim"], cfg["hidden_dim"], cfg.get("dtype")
        self.fc1 = nn.Linear(emb_dim, hidden_dim, bias=False, dtype=dtype)
        self.fc2 = nn.Linear(emb_dim, hidden_dim, bias=False, dtype=dtype)
        self.fc3 = nn.Linear(hidden_dim, emb_dim, bias=False, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.activation(apply_layer(self.fc1, x))  # (b, n, hidden_dim)
        return apply_layer(self.fc3, gate * apply_layer(self.fc2, x))

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        return silu(x)


class MoEFeedForward(nn.Module):
    """A mixture of experts: of many feed-forward layers, each token goes through a few.

    Input and output (b, n, emb_dim). ``gate`` scores all ``num_experts`` for a token; the best
    ``num_experts_per_tok`` answer, weighted by the softmax of their scores. With
    ``norm_topk_prob=False``, the softmax is over all experts, and the weights sum to less than 1.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        self.num_experts = cfg["num_experts"]
        self.num_experts_per_tok = cfg["num_experts_per_tok"]
        self.norm_topk_prob = cfg.get("norm_topk_prob", True)
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok must be from 1 to num_experts={self.num_experts}, "
                f"got {self.num_experts_per_tok}"
            )
        emb_dim, dtype = cfg["emb_dim"], cfg.get("dtype")
        hidden_dim = cfg.get("moe_hidden_dim") or cfg["moe_intermediate_size"]

        def layers(d_in: int, d_out: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Linear(d_in, d_out, bias=False, dtype=dtype) for _ in range(self.num_experts)
            )

        self.gate = nn.Linear(emb_dim, self.num_experts, bias=False, dtype=dtype)
        self.fc1 = layers(emb_dim, hidden_dim)
        self.fc2 = layers(emb_dim, hidden_dim)
        self.fc3 = layers(hidden_dim, emb_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, 1)  # (b * n, emb_dim)
        weights, experts = self.route(tokens)  # each (b * n, num_experts_per_tok)

        # Sort the pairs of token and expert by expert, so that each expert sees its tokens at once
        order = experts.flatten().argsort(stable=True)
        token_of = order // self.num_experts_per_tok
        counts = experts.flatten().bincount(minlength=self.num_experts).tolist()
        parts = token_of.split(counts)
        results = [
            self.expert(i, tokens[part]) for i, part in enumerate(parts) if len(part)
        ]  # experts without a token do nothing
        weighted = torch.cat(results) * weights.flatten()[order, None]
        return torch.zeros_like(tokens).index_add_(0, token_of, weighted).view_as(x)

    def route(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and numbers of the experts for each token, each (tokens, num_experts_per_tok)."""
        scores = self.gate(tokens)  # (tokens, num_experts)
        probas = scores.softmax(dim=-1, dtype=torch.float32)
        weights, experts = probas.topk(self.num_experts_per_tok, dim=-1)
        if self.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights.to(tokens.dtype), experts

    def expert(self, i: int, tokens: torch.Tensor) -> torch.Tensor:
        """Expert number ``i`` for some tokens, (tokens, emb_dim)."""
        x = tokens[None]  # (1, tokens, emb_dim)
        hidden = silu(apply_layer(self.fc1[i], x)) * apply_layer(self.fc2[i], x)
        return apply_layer(self.fc3[i], hidden)[0]
