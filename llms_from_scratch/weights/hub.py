"""Files of the Hugging Face hub: fetched by plain HTTP, read from folders, sharded or not.

``HF_ENDPOINT`` names a mirror, ``HF_TOKEN`` (or ``HUGGING_FACE_HUB_TOKEN``) opens gated models; it
is sent to the hub only, and never shown.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.data.formats import check_format
from llms_from_scratch.data.http import DownloadError, download, hub_url, is_offline
from llms_from_scratch.weights.sources import TensorSource, from_safetensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def download_from_huggingface(
    repo_id: str, filename: str, local_dir: str | Path, revision: str = "main"
) -> str:
    """Fetch one file of a hub repository into ``local_dir``, unless it is there; return its path.

    Raises ``DownloadError`` if it cannot be had, and ``ValueError`` for a name that leaves the
    folder.
    """
    target = inside(Path(local_dir), filename)
    if not target.is_file():
        if is_offline():
            raise DownloadError(f"{repo_id}/{filename}: LLMS_FROM_SCRATCH_OFFLINE is set")
        target.parent.mkdir(parents=True, exist_ok=True)
        url = f"{hub_url()}/{repo_id}/resolve/{revision}/{filename}"
        download([url], target, lambda path: check_format(path, target.name))
    return str(target)


def download_from_huggingface_from_snapshots(
    repo_id: str, local_dir: str | Path
) -> dict[str, torch.Tensor]:
    """Fetch a repository's weights, one file or many, and return all tensors by name."""
    folder = download_model(repo_id, local_dir, extra=())
    source = from_hub_folder(folder)
    return {name: source.read(name) for name in source.shapes}


def download_model(repo_id: str, local_dir: str | Path, extra=("config.json",)) -> Path:
    """Fetch what a model's folder needs: configuration, tokenizer if there is one, weights."""
    folder = Path(local_dir)
    for filename in extra:
        download_from_huggingface(repo_id, filename, folder)
    if extra:
        for filename in ("tokenizer.json", "generation_config.json"):
            try:
                download_from_huggingface(repo_id, filename, folder)
            except DownloadError:  # not every repository has them
                continue
    try:
        download_from_huggingface(repo_id, WEIGHTS, folder)
    except DownloadError as single:
        try:
            download_from_huggingface(repo_id, INDEX, folder)
        except DownloadError:
            raise single from None
        for shard in sorted(set(read_index(folder / INDEX).values())):
            download_from_huggingface(repo_id, shard, folder)
    return folder


def inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder; ``ValueError`` if its name leads out of it.

    >>> inside(Path("model"), "../secret")
    Traceback (most recent call last):
    ValueError: file name '../secret' leads out of the folder model: do not trust its origin
    """
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"file name {name!r} leads out of the folder {folder}: do not trust its origin"
        )
    return path


def read_json(path: str | Path) -> dict:
    """A JSON object in a file; ``ValueError`` that names the file if there is none."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, wanted a JSON object")
    return content


def read_index(path: Path) -> dict[str, str]:
    """Which file has each tensor, from a ``model.safetensors.index.json``."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise ValueError(f"{path} has no weight_map from names of tensors to file names")
    return places


def from_hub_folder(folder: str | Path) -> TensorSource:
    """The tensors of a hub folder, one safetensors file or several with an index.

    Raises ``FileNotFoundError`` for a missing file and ``ValueError`` for a damaged one, for an
    index that names what is not there, and for file names that lead out of the folder.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        return from_safetensors(folder / WEIGHTS)
    places = read_index(folder / INDEX)
    shards: dict[str, TensorSource] = {}
    for shard in sorted(set(places.values())):
        path = inside(folder, shard)
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder / INDEX} names {shard}, which is missing: download it into {folder}"
            )
        shards[shard] = from_safetensors(path)
    for name, shard in places.items():
        if name not in shards[shard].shapes:
            raise ValueError(f"{folder / INDEX}: tensor {name!r} is not in {shard}")
    return TensorSource(
        str(folder),
        {name: shards[shard].shapes[name] for name, shard in places.items()},
        lambda name: shards[places[name]].read(name),
    )


def write_json(path: Path, content: Mapping) -> None:
    """Write a JSON object so that the file is whole or not there."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
