"""Qwen3 for the interfaces of chapter 5: its sizes, its folders, and thoughts before answers."""

from collections.abc import Mapping
from pathlib import Path

import torch

from llms_from_scratch.app.script_tools import pick_device
from llms_from_scratch.data import DownloadError, cache_dir
from llms_from_scratch.qwen3 import (
    QWEN3_CONFIG_1_7B,
    QWEN3_CONFIG_4B,
    QWEN3_CONFIG_8B,
    QWEN3_CONFIG_14B,
    QWEN3_CONFIG_32B,
    QWEN_CONFIG_06_B,
)
from llms_from_scratch.serving.speaking import Speaker, load_speaker
from llms_from_scratch.weights.chat_formats import QwenFormat
from llms_from_scratch.weights.hub import download_model
from llms_from_scratch.weights.pretrained import load_pretrained

CONFIGS = {
    "0.6B": QWEN_CONFIG_06_B,
    "1.7B": QWEN3_CONFIG_1_7B,
    "4B": QWEN3_CONFIG_4B,
    "8B": QWEN3_CONFIG_8B,
    "14B": QWEN3_CONFIG_14B,
    "32B": QWEN3_CONFIG_32B,
}


def get_qwen_config(name: str) -> dict:
    """The configuration of a size, ``"0.6B"`` say; ``ValueError`` for one that there is not."""
    if name not in CONFIGS:
        raise ValueError(f"there is no Qwen3 of size {name!r}; sizes: {', '.join(CONFIGS)}")
    return CONFIGS[name]


def build_repo_and_local(
    model_name: str, reasoning: bool, local_dir_arg: str | Path | None = None
) -> tuple[str, Path]:
    """The repository on the hub and the folder of a size; without ``reasoning``, the base model.

    >>> build_repo_and_local("0.6B", False, "qwen")[0]
    'Qwen/Qwen3-0.6B-Base'
    """
    get_qwen_config(model_name)  # is there such a size?
    repo_id = f"Qwen/Qwen3-{model_name}" + ("" if reasoning else "-Base")
    return repo_id, Path(local_dir_arg or cache_dir() / "hub" / repo_id.replace("/", "--"))


def get_device(name: str = "auto") -> torch.device:
    """The device of a name; see ``pick_device``."""
    return pick_device(name)


def get_model_and_tokenizer(
    qwen3_config: Mapping,
    repo_id: str,
    local_dir: str | Path,
    device: torch.device | str,
    use_reasoning: bool,
):
    """The model and its tokenizer, downloaded into ``local_dir`` if they are not there.

    Raises ``ValueError`` if the folder holds a model of another size, and ``DownloadError``, with
    the way out, if the network is missing. ``use_reasoning`` is a matter of the prompt: see
    ``load_qwen_speaker``.
    """
    loaded = _load(qwen3_config, repo_id, local_dir)
    return loaded.model.to(device), loaded.tokenizer


def load_qwen_speaker(
    model: str, device: torch.device | str, reasoning: bool, local_dir: str | Path | None = None
) -> Speaker:
    """A Qwen3 by its size, or any other model by its name or path, ready to be spoken to."""
    if model not in CONFIGS:
        speaker = load_speaker(model, device=device)
    else:
        repo_id, folder = build_repo_and_local(model, reasoning, local_dir)
        speaker = Speaker.of(_load(get_qwen_config(model), repo_id, folder), name=repo_id)
        speaker.model.to(device)
    if isinstance(speaker.turns, QwenFormat):
        speaker.turns.thinking = reasoning
    return speaker


def _load(qwen3_config: Mapping, repo_id: str, local_dir: str | Path):
    if not (Path(local_dir) / "config.json").is_file():
        try:
            download_model(repo_id, local_dir)
        except DownloadError as error:
            raise DownloadError(
                f"{repo_id} is not in {local_dir} and cannot be downloaded ({error}): put its "
                "files there, or give another model, --model smollm2-135m-instruct say, or a folder"
            ) from None
    loaded = load_pretrained(local_dir)
    for key in ("emb_dim", "n_layers", "hidden_dim"):
        if loaded.config.get(key) != qwen3_config[key]:
            raise ValueError(
                f"{local_dir} holds a model with {key} {loaded.config.get(key)}, but {repo_id} has "
                f"{qwen3_config[key]}: give the folder itself as --model, or another LOCAL_DIR"
            )
    return loaded
