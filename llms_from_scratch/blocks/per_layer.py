"""A vector of each token for every layer: looked up and mixed in, and never multiplied while idle.

A model has a table with a row for each token and, in it, a short vector for each layer. Rows are
read, not multiplied: the table may be half of a model's parameters and cost nothing but storage.
Both classes here are parts of others: ``PerLayerInputs`` of a model, which makes the vectors, and
``PerLayerBranch`` of a block, which lets its own into the stream.

Shapes: b = batch size, n = tokens, width = of a vector for one layer.
"""

import torch
import torch.nn as nn
from torch.nn.functional import gelu

from llms_from_scratch.blocks.linear import apply_layer


class PerLayerInputs(nn.Module):
    """Of a model with ``cfg``: where the vectors for all layers come from."""

    def make_per_layer_inputs(self, norm: nn.Module | None) -> None:
        """The table, and a matrix that makes as much; ``norm`` has the width of one vector."""
        cfg, self.per_layer_width = self.cfg, self.cfg.get("hidden_size_per_layer_input") or 0
        if not self.per_layer_width:
            return
        rows = cfg.get("vocab_size_per_layer_input", cfg["vocab_size"])
        if rows < cfg["vocab_size"]:
            raise ValueError(
                f"vocab_size_per_layer_input={rows} is less than vocab_size={cfg['vocab_size']}: "
                "some tokens would have no vectors"
            )
        emb_dim, total, dtype = cfg["emb_dim"], cfg["n_layers"] * self.per_layer_width, cfg["dtype"]
        self.embed_tokens_per_layer = nn.Embedding(rows, total, dtype=dtype)
        self.per_layer_model_projection = nn.Linear(emb_dim, total, bias=False, dtype=dtype)
        self.per_layer_projection_norm = norm

    def get_per_layer_inputs(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Each token's vectors for all layers from the table, (b, n, n_layers, width)."""
        found = self.embed_tokens_per_layer(input_ids).unflatten(-1, (-1, self.per_layer_width))
        return scaled(found, self.per_layer_width**0.5)

    def project_per_layer_inputs(
        self, inputs_embeds: torch.Tensor, per_layer_inputs: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The same from the embedding by a matrix, and the mean of both, but for a factor √2."""
        made = apply_layer(self.per_layer_model_projection, inputs_embeds)
        made = made * self.cfg["emb_dim"] ** -0.5
        made = self.per_layer_projection_norm(made.unflatten(-1, (-1, self.per_layer_width)))
        return made if per_layer_inputs is None else (made + per_layer_inputs) * 2.0**-0.5

    def inputs_of_layers(self, input_ids: torch.Tensor, x: torch.Tensor) -> tuple:
        """For each layer its vectors, (b, n, width), or None in a model that has none."""
        if not self.per_layer_width:
            return (None,) * self.cfg["n_layers"]
        return self.project_per_layer_inputs(x, self.get_per_layer_inputs(input_ids)).unbind(2)


class PerLayerBranch(nn.Module):
    """Of a block: the stream opens this layer's vector, and a matrix leads it back."""

    def make_per_layer_branch(
        self, emb_dim: int, width: int, norm: nn.Module, dtype: torch.dtype | None
    ) -> None:
        self.per_layer_input_gate = nn.Linear(emb_dim, width, bias=False, dtype=dtype)
        self.per_layer_projection = nn.Linear(width, emb_dim, bias=False, dtype=dtype)
        self.post_per_layer_input_norm = norm

    def add_per_layer_input(
        self, x: torch.Tensor, per_layer_input: torch.Tensor | None
    ) -> torch.Tensor:
        """``x`` (b, n, emb_dim) and what comes of a vector (b, n, width); ``x`` without one."""
        if per_layer_input is None:
            return x
        gate = gelu(apply_layer(self.per_layer_input_gate, x), approximate="tanh")
        added = apply_layer(self.per_layer_projection, gate * per_layer_input)
        return x + self.post_per_layer_input_norm(added)


def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    """``x`` times a factor that is rounded as the weights are."""
    return x * torch.tensor(factor, dtype=x.dtype, device=x.device)
