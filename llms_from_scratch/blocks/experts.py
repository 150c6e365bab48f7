"""Mixtures of experts beyond the plain one: shared experts, other routers, and a balanced load.

Shapes: tokens = b * n of them, k = experts per token.
Sources: Fedus et al., "Switch Transformers" (2021); Dai et al., "DeepSeekMoE" (2024);
DeepSeek-AI, "DeepSeek-V3 Technical Report" (2024).
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn as nn

from llms_from_scratch.blocks.feed_forward import FeedForward, MoEFeedForward


def load_balance_loss(scores: torch.Tensor, num_experts_per_tok: int) -> torch.Tensor:
    """How unevenly a router shares out tokens: k if all experts get as many, up to their number.

    ``scores`` (tokens, num_experts) are the router's. For each expert, the share of tokens that
    choose it times its mean probability, summed, times the number of experts. The shares have no
    gradient, the probabilities do: training with a little of this loss lowers the probability of
    those that are chosen often.

    >>> even, skewed = torch.eye(4) * 50, torch.tensor([[50.0, 0, 0, 0]] * 4)
    >>> load_balance_loss(even, 1), load_balance_loss(skewed, 1)
    (tensor(1.), tensor(4.))
    """
    num_experts = scores.shape[-1]
    probas = scores.softmax(dim=-1, dtype=torch.float32)
    chosen = probas.topk(num_experts_per_tok, dim=-1).indices
    counts = chosen.flatten().bincount(minlength=num_experts)
    return num_experts * (counts / len(scores) * probas.mean(dim=0)).sum()


@contextlib.contextmanager
def recorded_scores(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list to which each mixture of experts in ``model`` adds its router's scores.

    For a loss, or to see who goes where::

        with recorded_scores(model) as scores:
            logits = model(ids)
        loss = loss + 0.01 * sum(load_balance_loss(layer, 2) for layer in scores) / len(scores)
    """
    scores: list[torch.Tensor] = []
    routers = [m.gate for m in model.modules() if isinstance(m, MoEFeedForward)]
    hooks = [
        router.register_forward_hook(lambda _module, _inputs, output: scores.append(output))
        for router in routers
    ]
    try:
        yield scores
    finally:
        for hook in hooks:
            hook.remove()


class SharedExpertMoE(MoEFeedForward):
    """A mixture of experts with one more that answers every token, through a gate of its own.

    Input and output (b, n, emb_dim). The configuration has ``shared_expert_dim`` besides. As in
    Qwen2-MoE and Qwen3-Next.
    """

    def __init__(self, cfg: dict):
        super().__init__(cfg)
        shared_cfg = cfg | {"hidden_dim": cfg["shared_expert_dim"]}
        self.shared_expert = FeedForward(shared_cfg)
        self.shared_gate = nn.Linear(cfg["emb_dim"], 1, bias=False, dtype=cfg.get("dtype"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared = torch.sigmoid(self.shared_gate(x)) * self.shared_expert(x)
        return super().forward(x) + shared


class DeepSeekMoE(MoEFeedForward):
    """The mixture of experts of DeepSeek-V3. Input and output (b, n, emb_dim).

    Each expert's score is a sigmoid of its own, so that scores do not compete. For the choice only,
    ``expert_bias`` is added: raised for experts with too few tokens and lowered for those with too
    many, it balances the load without a loss (``update_bias``). Experts are in ``num_groups``
    groups, of which a token may use ``groups_per_tok``: fewer machines to talk to. One shared
    expert answers every token.

    The configuration has ``shared_expert_dim`` besides, and may have ``num_groups`` (1),
    ``groups_per_tok`` (1) and ``routed_scale`` (1.0), a factor of all weights.
    """

    def __init__(self, cfg: dict):
        super().__init__(cfg)
        self.num_groups = cfg.get("num_groups", 1)
        self.groups_per_tok = cfg.get("groups_per_tok", 1)
        self.routed_scale = cfg.get("routed_scale", 1.0)
        if self.num_experts % self.num_groups or self.groups_per_tok > self.num_groups:
            raise ValueError(
                f"num_groups={self.num_groups} must divide num_experts={self.num_experts}, and "
                f"groups_per_tok={self.groups_per_tok} must not be larger"
            )
        can_choose = self.groups_per_tok * self.num_experts // self.num_groups
        if self.num_experts_per_tok > can_choose:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} is more than the {can_choose} "
                f"experts of groups_per_tok={self.groups_per_tok} groups"
            )
        shared_cfg = cfg | {"hidden_dim": cfg["shared_expert_dim"]}
        self.shared_expert = FeedForward(shared_cfg)
        self.register_buffer("expert_bias", torch.zeros(self.num_experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.shared_expert(x)

    def route(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.gate(tokens).float().sigmoid()  # (tokens, num_experts)
        ranked = scores + self.expert_bias
        if self.num_groups > 1:
            ranked = ranked.masked_fill(self.outside_best_groups(ranked), -torch.inf)
        experts = ranked.topk(self.num_experts_per_tok, dim=-1).indices
        weights = scores.gather(1, experts)
        if self.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return (weights * self.routed_scale).to(tokens.dtype), experts

    def outside_best_groups(self, ranked: torch.Tensor) -> torch.Tensor:
        """True for experts of groups whose two best are not among the best, like ``ranked``."""
        groups = ranked.unflatten(-1, (self.num_groups, -1))  # (tokens, groups, experts of each)
        of_two = groups.topk(min(2, groups.shape[-1]), dim=-1).values.sum(dim=-1)
        best = of_two.topk(self.groups_per_tok, dim=-1).indices
        outside = torch.ones_like(of_two, dtype=torch.bool).scatter(1, best, False)
        return outside.repeat_interleave(groups.shape[-1], dim=-1)

    @torch.no_grad()
    def update_bias(self, tokens: torch.Tensor, rate: float = 0.001) -> None:
        """After a step of training: a little more for experts with fewer tokens than the mean.

        ``tokens`` (tokens, emb_dim) are those of the step.
        """
        counts = self.route(tokens)[1].flatten().bincount(minlength=self.num_experts).float()
        self.expert_bias += rate * torch.sign(counts.mean() - counts)
