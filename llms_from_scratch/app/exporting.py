"""What ``llms-from-scratch export`` does: any model that we load, for other programs."""

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

from llms_from_scratch.app.model_card import model_card
from llms_from_scratch.appendix_e import LinearWithLoRA, merge_lora
from llms_from_scratch.ch07 import CHAT, find_prompt_style, open_finetuned
from llms_from_scratch.weights.chat_formats import (
    HubTokenizer,
    TurnFormat,
    end_of_text_id,
    special_tokens_of,
)
from llms_from_scratch.weights.chat_templates import END, jinja_for_style, modelfile
from llms_from_scratch.weights.export_gguf import check_for_gguf, write_gguf_model
from llms_from_scratch.weights.export_hub import write_hub_model
from llms_from_scratch.weights.export_tokenizers import tokenizer_for_gguf, tokenizer_json
from llms_from_scratch.weights.gpt2 import export_to_hub_folder
from llms_from_scratch.weights.hub import write_json
from llms_from_scratch.weights.pretrained import Pretrained, load_pretrained

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BEGIN_MARKS = ("<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>", "<|im_start|>")
FILES_OF_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
NO_CLASSIFIER = (
    "{} is a classifier of chapter 6, which no other program computes as we do: its answer is at "
    "the last of max_length positions, the padding included. GPT2ForSequenceClassification takes "
    "the last token before the padding, and has no bias in its last layer: the answers would "
    "differ. Use it with load_classifier"
)


@dataclass(frozen=True)
class Loaded:
    """A model, and what its training has written down about it."""

    pretrained: Pretrained
    settings: Mapping

    @property
    def asked(self) -> TurnFormat | str | None:
        """How the model is asked: a form of conversation, or the name of a prompt style."""
        return self.style or self.pretrained.chat

    @property
    def style(self) -> str | None:
        """The name of its prompt style; None if its own chat template says how it is asked."""
        style = self.settings.get("prompt_style")
        return None if style == CHAT else style

    @property
    def end(self) -> str:
        """The token that ends a response in a prompt style."""
        tokenizer = self.pretrained.tokenizer
        if tokenizer is None:
            return END
        wanted = end_of_text_id(tokenizer)
        return next(token for token, i in special_tokens_of(tokenizer).items() if i == wanted)


def load_any(wanted: str) -> Loaded:
    """A model of ours or of others; see ``load_pretrained`` and ``load_finetuned``.

    Raises ``ValueError`` for a classifier of chapter 6.
    """
    path = Path(wanted)
    folder = path if path.is_dir() else path.parent
    is_classifier = (path / "review_classifier.json").is_file()
    if is_classifier or path.stem == "review_classifier":
        raise ValueError(NO_CLASSIFIER.format(wanted))
    if not path.exists() or not (folder / "settings.json").is_file():
        return Loaded(load_pretrained(wanted), {})
    pretrained, settings = open_finetuned(wanted)
    if settings["prompt_style"] not in (None, CHAT):
        find_prompt_style(settings["prompt_style"])
    return Loaded(pretrained, settings)


def without_lora(model: nn.Module) -> nn.Module:
    """A model whose LoRA layers are merged and replaced; the given model stays as it is."""
    if not any(isinstance(module, LinearWithLoRA) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    merge_lora(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, LinearWithLoRA):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.linear)
    return model


def check_range(model: nn.Module, dtype: torch.dtype) -> None:
    """Raise ``ValueError`` if a weight is beyond the largest number of a type."""
    limit = torch.finfo(dtype).max
    for name, parameter in model.named_parameters():
        largest = parameter.detach().abs().max().item()
        if not largest <= limit:  # also if it is no number
            raise ValueError(f"{name} has the weight {largest:g}, beyond {limit:g} of {dtype}")


def export_model(loaded: Loaded, folder: Path, format: str, dtype: str | None = None) -> None:
    """Write a model into an empty folder; ``format`` is "hf", "gguf" or "ollama".

    ``dtype`` is F32, F16, BF16 (hf only) or Q8_0 (not hf); None is the model's own. Raises
    ``ValueError`` for a model that the format cannot hold.
    """
    model = without_lora(loaded.pretrained.model)
    if format == "hf":
        kind = TORCH_DTYPES[dtype] if dtype else model.tok_emb.weight.dtype
        check_range(model, kind)
        _write_hub(loaded, model, folder, kind)
    else:
        dtype = dtype or "F16"
        _write_gguf(loaded, model, folder, dtype)
        if format == "ollama":
            text = modelfile(loaded.asked, end=loaded.end)
            (folder / "Modelfile").write_text(text, encoding="utf-8")
    card = model_card(loaded.pretrained, loaded.settings, format, dtype)
    (folder / "README.md").write_text(card, encoding="utf-8")
    for path in folder.iterdir():  # safetensors writes files that only their owner may read
        path.chmod((folder / "README.md").stat().st_mode)


# --- The hub ---


def _write_hub(loaded: Loaded, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    pretrained = loaded.pretrained
    if pretrained.model_type == "gpt2":
        export_to_hub_folder(model, pretrained.config, folder, dtype)
    else:
        write_hub_model(model, pretrained.model_type, pretrained.config, folder, dtype)
    names = names_of_tokens(pretrained)
    if pretrained.tokenizer is not None:
        _write_tokenizer(loaded, folder, names)
    ids: dict = {f"{kind}_token_id": token_id for kind, (_, token_id) in names.items()}
    chat = known_chat(pretrained)
    if stops := pretrained.eos_ids | (chat.stop_ids if chat else set()):
        ids["eos_token_id"] = sorted(stops)
    write_json(folder / "generation_config.json", ids)


def known_chat(pretrained: Pretrained) -> TurnFormat | None:
    """How the model is asked; None also for a template that we do not know, but pass on."""
    try:
        return pretrained.chat
    except ValueError:
        return None


def names_of_tokens(pretrained: Pretrained) -> dict[str, tuple[str, int]]:
    """The tokens, by text and id, that begin ("bos") and end a text, and fill up a batch."""
    if pretrained.tokenizer is None:
        return {}
    special = special_tokens_of(pretrained.tokenizer)
    found = {"bos": next((mark for mark in BEGIN_MARKS if mark in special), None)}
    chat = known_chat(pretrained)
    chat_ends = list(chat.stops) if chat else []
    by_id = {token_id: token for token, token_id in special.items()}
    ends = [*chat_ends, *(by_id.get(token_id) for token_id in sorted(pretrained.eos_ids))]
    found["eos"] = next((end for end in ends if end), None)
    found["pad"] = by_id.get(pretrained.pad_id)
    return {kind: (token, special[token]) for kind, token in found.items() if token}


def _write_tokenizer(loaded: Loaded, folder: Path, names: Mapping) -> None:
    pretrained = loaded.pretrained
    is_gpt2s_own = (folder / "vocab.json").is_file() and not isinstance(
        pretrained.tokenizer, HubTokenizer
    )
    if not is_gpt2s_own:
        write_json(folder / "tokenizer.json", tokenizer_json(pretrained.tokenizer))
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink(missing_ok=True)
    origin = getattr(pretrained.tokenizer, "path", None)
    if isinstance(origin, Path) and (origin.parent / "tokenizer_config.json").is_file():
        for name in FILES_OF_TOKENIZER:
            if (origin.parent / name).is_file():
                shutil.copyfile(origin.parent / name, folder / name)
        return
    config = {
        "tokenizer_class": "GPT2Tokenizer" if is_gpt2s_own else "PreTrainedTokenizerFast",
        "model_max_length": pretrained.config["context_length"],
        "clean_up_tokenization_spaces": False,
        **{f"{kind}_token": token for kind, (token, _) in names.items()},
    }
    style = loaded.style
    template = jinja_for_style(style, loaded.end) if style else pretrained.template
    write_json(
        folder / "tokenizer_config.json",
        config | ({"chat_template": template} if template else {}),
    )


# --- GGUF ---


def _write_gguf(loaded: Loaded, model: nn.Module, folder: Path, kind: str) -> None:
    pretrained = loaded.pretrained
    cfg = pretrained.config
    check_for_gguf(pretrained.model_type, cfg)
    if pretrained.tokenizer is None:
        raise ValueError(
            f"{pretrained.name} came without a tokenizer, which a GGUF file needs: put its "
            "tokenizer.json beside it"
        )
    about = {"general.name": Path(pretrained.name).name}
    about |= tokenizer_for_gguf(tokenizer_json(pretrained.tokenizer), cfg["vocab_size"])
    names = names_of_tokens(pretrained)
    keys = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id"}
    for which, (_, token_id) in names.items():
        about[f"tokenizer.ggml.{keys[which]}"] = token_id
    begins = names.get("bos", ("", 0))[0] in ("<|begin_of_text|>", "<bos>")
    about["tokenizer.ggml.add_bos_token"] = begins
    style = loaded.style
    template = jinja_for_style(style, loaded.end) if style else pretrained.template
    if template:
        about["tokenizer.chat_template"] = template
    write_gguf_model(folder / "model.gguf", model, pretrained.model_type, cfg, about, kind)
