"""A language model as a classifier: which token answers, which layers learn, who looks at whom.

Shapes: b = batch size, n = tokens, emb_dim = width of the model.
"""

import torch
import torch.nn as nn

from llms_from_scratch.appendix_e import LinearWithLoRA
from llms_from_scratch.blocks.decoder import DecoderModel
from llms_from_scratch.ch05 import evaluating
from llms_from_scratch.ch06 import replace_output_head, set_trainable_layers
from llms_from_scratch.classification.texts import EncodedTexts, LengthBatches, TextBatch

TRAINABLE_LAYERS = (
    "all",
    "last_block",
    "last_two_blocks",
    "last_layer",
    "lora",
    "lora_alternative",
)
TOKEN_POSITIONS = ("first", "last", "flexible")


class LinearWithLoRAMerged(LinearWithLoRA):
    """The same function as ``LinearWithLoRA``, with the change added to the weight at each call.

    One product with a whole weight instead of one with it and two thin ones. Without dropout.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.merged:
            return self.linear(x)
        change = self.lora.scaling * (self.lora.A @ self.lora.B)  # (in_features, out_features)
        return nn.functional.linear(x, self.linear.weight + change.T, self.linear.bias)


def add_lora_layers(model: nn.Module, rank: int, alpha: float, alternative: bool = False) -> None:
    """Put a LoRA layer in the place of every linear layer, on all levels of a model.

    ``alternative`` takes ``LinearWithLoRAMerged``, everywhere.
    """
    kind = LinearWithLoRAMerged if alternative else LinearWithLoRA
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            setattr(model, name, kind(module, rank, alpha))
        elif not isinstance(module, LinearWithLoRA):
            add_lora_layers(module, rank, alpha, alternative)


class TextClassifier(nn.Module):
    """A GPT or a model of ``DecoderModel`` with a new output layer: ``TextBatch`` to logits.

    The result is (b, 1, num_classes), as if there were one token, so chapter 6's functions take
    this model as it is. ``token_pos`` is the token whose output is read: ``"first"``, ``"last"``
    (padding, if a text is padded), or ``"flexible"``, the last real one. ``average_embeddings``
    reads the mean over the final embeddings of all real tokens instead. Without ``causal``, every
    token looks at all of them, padding included.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int = 2,
        token_pos: str = "last",
        average_embeddings: bool = False,
        causal: bool = True,
    ):
        super().__init__()
        if token_pos not in TOKEN_POSITIONS:
            raise ValueError(
                f"trainable_token_pos must be one of {TOKEN_POSITIONS}, got {token_pos!r}"
            )
        self.model, self.token_pos = model, token_pos
        self.average_embeddings, self.causal = average_embeddings, causal
        self.is_gpt = hasattr(model, "pos_emb")
        if not self.is_gpt and not isinstance(model, DecoderModel):
            raise ValueError(f"{type(model).__name__} is no GPT and no DecoderModel")
        if not causal:
            self._remove_causal_mask()
        replace_output_head(model, num_classes)
        self.start = 0  # the first block that is computed; more than 0 for hidden states

    def _remove_causal_mask(self) -> None:
        if not self.is_gpt:
            return  # the mask is made for each batch, in ``run_blocks``
        for block in self.model.trf_blocks:
            if not hasattr(block.att, "mask"):
                raise ValueError(
                    f"{type(self.model).__name__} has no mask that could be removed: use GPTModel"
                )
            block.att.mask.zero_()

    @property
    def needs_fixed_length(self) -> bool:
        """Whether the amount of padding changes the result, so that it must always be the same."""
        reads_padding = self.token_pos == "last" and not self.average_embeddings
        return reads_padding or not self.causal

    def forward(self, batch: TextBatch) -> torch.Tensor:
        x = batch.values if self.start else self.embed(batch.values)  # (b, n, emb_dim)
        x = self.run_blocks(x, self.start, len(self.model.trf_blocks))
        x = self.pick(self.model.final_norm(x), batch.lengths)  # (b, emb_dim)
        return self.model.out_head(x)[:, None]  # (b, 1, num_classes)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        model, n = self.model, token_ids.shape[1]
        if not self.is_gpt:
            return model.embed(token_ids)
        if n > model.cfg["context_length"]:
            raise ValueError(
                f"a text has {n} tokens, more than the context of {model.cfg['context_length']}: "
                "give a context_length that cuts it"
            )
        positions = model.pos_emb(torch.arange(n, device=token_ids.device))
        return model.drop_emb(model.tok_emb(token_ids) + positions)

    def run_blocks(self, x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Hidden states (b, n, emb_dim) after block ``stop - 1``, from those before ``start``."""
        model, n = self.model, x.shape[1]
        if self.is_gpt:
            return model.trf_blocks[start:stop](x)
        inputs = model.attention_inputs(n, x, None)
        for index in range(start, stop):
            mask, cos, sin = inputs[model.layer_types[index]]
            if not self.causal:
                mask = torch.zeros(n, n, dtype=torch.bool, device=x.device)
            x = model.trf_blocks[index](x, mask, cos, sin, None, index)
        return x

    def pick(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The one vector for each text that the output layer reads: (b, n, d) to (b, d)."""
        if self.average_embeddings:
            real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (b, n)
            return (x * real[..., None]).sum(dim=1) / lengths[:, None]
        if self.token_pos == "first":
            return x[:, 0]
        if self.token_pos == "last":
            return x[:, -1]
        return x[torch.arange(len(x), device=x.device), lengths - 1]


def set_trainable(
    classifier: TextClassifier,
    layers: str,
    lora_rank: int = 8,
    lora_alpha: float = 8,
    last_blocks: int | None = None,
) -> None:
    """Choose what learns: chapter 6's names, or ``"lora"`` and ``"lora_alternative"``.

    The output layer always does. LoRA is put into all blocks, or into the ``last_blocks`` only;
    with ``"last_block"``, ``last_blocks`` of them learn instead of one.
    """
    model = classifier.model
    if layers not in TRAINABLE_LAYERS:
        raise ValueError(f"trainable_layers must be one of {TRAINABLE_LAYERS}, got {layers!r}")
    if last_blocks is not None and not 1 <= last_blocks <= len(model.trf_blocks):
        raise ValueError(
            f"last_blocks must be from 1 to the model's {len(model.trf_blocks)}, got {last_blocks}"
        )
    if not layers.startswith("lora"):
        set_trainable_layers(model, layers)
        if last_blocks and layers == "last_block":
            model.trf_blocks[-last_blocks:].requires_grad_(True)
        return
    model.requires_grad_(False)
    model.out_head.requires_grad_(True)
    for block in model.trf_blocks[-(last_blocks or len(model.trf_blocks)) :]:
        add_lora_layers(block, lora_rank, lora_alpha, layers == "lora_alternative")


def first_trained_block(classifier: TextClassifier) -> int:
    """The number of blocks, from the first, below which nothing learns."""
    model = classifier.model
    embeddings = [model.tok_emb, model.pos_emb] if classifier.is_gpt else [model.tok_emb]
    for index, part in enumerate([embeddings, *model.trf_blocks]):
        modules = part if isinstance(part, list) else [part]
        if any(p.requires_grad for module in modules for p in module.parameters()):
            return max(0, index - 1)
    return len(model.trf_blocks)


def frozen_features(
    classifier: TextClassifier,
    data: EncodedTexts,
    stop: int,
    pad_id: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> EncodedTexts:
    """Hidden states before block ``stop``, for each text: what frozen layers give in every epoch.

    Frozen layers are computed once here instead of once per epoch, and without dropout. Set
    ``classifier.start = stop`` to train on the result; each text takes n * emb_dim numbers of
    memory. ``dtype`` is that of autocast, if any.
    """
    loader = LengthBatches(data, 16, pad_id)
    values: list = [None] * len(data)
    autocast = torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None)
    with evaluating(classifier), autocast:
        position = 0
        for batch, _ in loader:
            batch = batch.to(device)
            states = classifier.run_blocks(classifier.embed(batch.values), 0, stop).float().cpu()
            for row in states:
                index = loader.order[position]
                values[index] = row[: len(data.values[index])].clone()
                position += 1
    return EncodedTexts(values, data.lengths, data.labels)
