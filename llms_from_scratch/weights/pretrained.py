"""A pretrained GPT on every machine: GPT-2 if it can be had, else the small one bundled here."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from llms_from_scratch.ch04 import BASE_CONFIG, GPTModel, model_configs
from llms_from_scratch.data import DownloadError, fetch
from llms_from_scratch.data.manifest import GPT2_SIZES, OPENAI_FILES
from llms_from_scratch.weights.gpt2 import (
    config_from_hub,
    from_openai,
    load_gpt2,
    load_gpt2_params_from_tf_ckpt,
)
from llms_from_scratch.weights.sources import TensorSource, from_pth, from_safetensors

BUNDLED_NAME = "gpt2-tiny"
BUNDLED = Path(__file__).parent.parent / "data" / BUNDLED_NAME


@dataclass
class Pretrained:
    """A model in evaluation mode, its configuration, and what it is."""

    name: str  # "gpt2-small (124M)", ..., "gpt2-tiny", or a path
    config: dict
    model: torch.nn.Module


def choose_pretrained(
    wanted: str = "gpt2-small (124M)", model_class: type = GPTModel
) -> Pretrained:
    """Load the wanted GPT-2 if it is cached or can be downloaded, else the bundled ``gpt2-tiny``.

    One printed line says which it is. See ``load_pretrained`` for what ``wanted`` may be; nothing
    takes the place of a path that does not exist.
    """
    try:
        chosen = load_pretrained(wanted, model_class)
        print(f"Model: {chosen.name}")
    except DownloadError:
        chosen = load_pretrained(BUNDLED_NAME, model_class)
        print(
            f"Model: {BUNDLED_NAME}, which comes with this package, because {wanted} could not be "
            "downloaded. It writes worse, and its numbers differ from the book's."
        )
    return chosen


def load_pretrained(wanted: str | Path, model_class: type = GPTModel) -> Pretrained:
    """Load one particular model: a key of ``model_configs``, ``"gpt2-tiny"``, or a path.

    The path is a folder as on the Hugging Face hub (``config.json``, ``model.safetensors``), with
    OpenAI's checkpoint (``hparams.json``, ``model.ckpt.*``), or as ``gpt_train.py`` writes it
    (``settings.json``, ``model.pth``). A single file, ``.safetensors`` or ``.pth``, is taken with
    the configuration beside it, or without one for GPT-2 of a usual size. Raises ``DownloadError``
    if a download fails, and ``FileNotFoundError`` or ``ValueError`` for a path that holds no model.
    """
    if wanted in model_configs:
        config = BASE_CONFIG | model_configs[wanted]
        hub_name = GPT2_SIZES[_size_in(wanted)]
        path = fetch(f"{hub_name}/model.safetensors", allow_sample=False)
        return _load(wanted, config, from_safetensors(path), model_class)
    path = BUNDLED if wanted == BUNDLED_NAME else Path(wanted)
    if not path.exists():
        known = ", ".join([*model_configs, BUNDLED_NAME])
        raise FileNotFoundError(f"{wanted} is neither a known model ({known}) nor a path")
    source = _open(path)
    folder = path.parent if path.is_file() else path
    config = _config_in(folder) or _usual_config(source)
    return _load(str(wanted), config, source, model_class)


def _open(path: Path) -> TensorSource:
    """The weights in a file or folder, whatever their format."""
    names = ("model.safetensors", "model.ckpt.index", "model.pth")
    for candidate in [path] if path.is_file() else [path / name for name in names]:
        if not candidate.is_file():
            continue
        if candidate.suffix == ".safetensors":
            return from_safetensors(candidate)
        if candidate.name == "model.ckpt.index":
            return from_openai(candidate.with_suffix(""))
        if candidate.suffix == ".pth":
            return from_pth(candidate)
    raise FileNotFoundError(f"{path} holds no model.safetensors, model.ckpt.index or model.pth")


def _config_in(folder: Path) -> dict | None:
    """Our configuration of the model in a folder, if there is a file that says it."""
    if (folder / "config.json").is_file():
        return config_from_hub(folder)
    for name, read in (
        ("hparams.json", config_from_openai),
        ("settings.json", lambda settings: settings["config"]),
    ):
        if (folder / name).is_file():
            return read(json.loads((folder / name).read_text(encoding="utf-8")))
    return None


def _usual_config(source: TensorSource) -> dict:
    """The configuration of the GPT-2 that has this width."""
    widths = {shape[-1] for name, shape in source.shapes.items() if name.endswith("wpe.weight")}
    for sizes in model_configs.values():
        if sizes["emb_dim"] in widths:
            return BASE_CONFIG | sizes
    raise ValueError(f"{source.description}: put its config.json beside it, it is no usual GPT-2")


def download_and_load_gpt2(model_size: str, models_dir: str | Path) -> tuple[dict, dict]:
    """OpenAI's TensorFlow checkpoint as ``(settings, params)``, without TensorFlow (section 5.5).

    ``model_size`` is "124M", "355M", "774M" or "1558M". The files are kept in
    ``models_dir/model_size``. Raises ``ValueError`` for another size, and ``DownloadError`` if a
    file cannot be had.
    """
    if model_size not in GPT2_SIZES:
        raise ValueError(f"model_size must be one of {tuple(GPT2_SIZES)}, got {model_size!r}")
    folder = Path(models_dir) / model_size
    for file_name in OPENAI_FILES:
        fetch(f"openai-{model_size}/{file_name}", target=folder / file_name)
    for file_name in ("encoder.json", "vocab.bpe"):
        fetch(f"gpt2-vocab/{file_name}", target=folder / file_name)
    settings = json.loads((folder / "hparams.json").read_text(encoding="utf-8"))
    return settings, load_gpt2_params_from_tf_ckpt(folder / "model.ckpt", settings)


def config_from_openai(settings: dict) -> dict:
    """Our configuration of a model with OpenAI's ``hparams.json``."""
    return BASE_CONFIG | {
        "vocab_size": settings["n_vocab"],
        "context_length": settings["n_ctx"],
        "emb_dim": settings["n_embd"],
        "n_heads": settings["n_head"],
        "n_layers": settings["n_layer"],
    }


def _load(name: str, config: dict, source: TensorSource, model_class: type) -> Pretrained:
    model = model_class(config)
    load_gpt2(model, source)
    return Pretrained(name, config, model.eval())


def _size_in(name: str) -> str:
    """The size in a name.

    >>> _size_in("gpt2-small (124M)")
    '124M'
    """
    return name.partition("(")[2].rstrip(")")
