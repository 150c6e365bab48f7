"""The README.md of an exported model: what is known of it, and nothing else."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from llms_from_scratch.ch04 import model_configs
from llms_from_scratch.data.manifest import ASSETS
from llms_from_scratch.weights.pretrained import BUNDLED_NAME, GGUF_MODELS, Pretrained

HUB_LICENCES = {  # as the hub writes them
    "Apache-2.0": "apache-2.0",
    "CC0": "cc0-1.0",
    "Gemma Terms of Use": "gemma",
    "Modified MIT (OpenAI)": "other",
}
USES = {
    "hf": 'AutoModelForCausalLM.from_pretrained("FOLDER")  # of transformers',
    "gguf": "llama-cli -m FOLDER/model.gguf",
    "ollama": "ollama create NAME -f FOLDER/Modelfile",
}
RECORDED = {  # a key of settings.json: what it says
    "updates": "Updates",
    "tokens_seen": "Tokens seen",
    "training_seconds": "Training time in seconds",
    "final_train_loss": "Loss on the training data",
    "final_val_loss": "Loss on the validation data",
    "prompt_style": "Prompts in the style of",
}


def licence_of(name: str) -> tuple[str, str] | None:
    """The licence of a model that we know by name, and where to read it; None if we do not."""
    if name == BUNDLED_NAME:
        return "CC0", ""
    if name in GGUF_MODELS:
        asset = ASSETS[f"{name}/model.gguf"]
        return asset.licence, asset.licence_text or ""
    return (ASSETS["gpt2/model.safetensors"].licence, "") if name in model_configs else None


def recorded(settings: Mapping) -> Iterator[tuple[str, str]]:
    """What a training run has written down, as names and values."""
    run = settings.get("settings") if isinstance(settings.get("settings"), dict) else {}
    data = settings.get("asset") or settings.get("data") or run.get("data")
    if data:
        known = f", {ASSETS[data].licence}" if data in ASSETS else ""
        yield "Data", f"{Path(str(data)).name}{known}"
    for key, name in RECORDED.items():
        if settings.get(key) is not None:
            yield name, str(settings[key])
    for key, value in run.items():
        if key != "data" and isinstance(value, str | int | float):
            yield f"Setting `{key}`", str(value)


def model_card(
    pretrained: Pretrained, settings: Mapping, format: str, dtype: str | None = None
) -> str:
    """The text of the card, in Markdown with the hub's metadata in front."""
    base = str(settings.get("pretrained") or pretrained.name)
    was_trained_here = bool(settings) and "pretrained" not in settings
    licence = None if was_trained_here else licence_of(base)
    title = Path(pretrained.name).name
    lines = ["---"]
    if licence:
        lines.append(f"license: {HUB_LICENCES[licence[0]]}")
    lines += [f"library_name: {'transformers' if format == 'hf' else 'gguf'}", "---", ""]
    lines += [f"# {title}", "", "Written by `llms-from-scratch export`.", ""]
    lines += ["```", USES[format], "```", "", "| | |", "|---|---|"]
    unique = {id(p): p.numel() for p in pretrained.model.parameters()}
    rows = [("Architecture", pretrained.model_type)]
    rows += [("Parameters", f"{sum(unique.values()):,}")]
    rows += [("Weights", dtype or str(pretrained.model.tok_emb.weight.dtype)[6:])]
    if was_trained_here:
        rows.append(("Base", "none: trained from random weights"))
        rows.append(("Licence", "that of whoever trained it; see the data's"))
    else:
        rows.append(("Base", Path(base).name if Path(base).exists() else base))
        unknown = ("not recorded: look where the base comes from", "")
        rows.append(("Licence of the base", " ".join(licence or unknown).strip()))
    rows += recorded(settings)
    rows += [(f"`{key}`", str(value)) for key, value in pretrained.config.items()]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows), ""])
