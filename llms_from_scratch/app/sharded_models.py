"""``llms-from-scratch convert RUN/checkpoint-fsdp model.safetensors``: one file of many parts."""

import json
from pathlib import Path

from llms_from_scratch.app.run_folder import SHARDED_CHECKPOINT
from llms_from_scratch.data.files import atomic_write


def sharded_checkpoint_in(source: str, target: Path) -> Path | None:
    """The checkpoint of ``--parallel fsdp`` that is meant by a path, if one is.

    That is its own folder; or the folder of its run, if the target is a .safetensors file.
    """
    folder = Path(source)
    if any(folder.glob("step-*/.metadata")):
        return folder
    inside = folder / SHARDED_CHECKPOINT
    return inside if target.suffix == ".safetensors" and inside.is_dir() else None


def convert_sharded(folder: Path, target: Path) -> None:
    """Write the model of a checkpoint as one .safetensors file.

    Its configuration is written into ``settings.json`` beside it, where ``load_pretrained`` looks
    for it. Raises ``ValueError`` if one of another model is there.
    """
    from safetensors.torch import save_file

    from llms_from_scratch.training.sharded import read_sharded_model

    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: a {folder.name} becomes one file: give {target}.safetensors")
    config, tensors = read_sharded_model(folder)
    settings = target.with_name("settings.json")
    _check_settings(settings, config)
    with atomic_write(target) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    if not settings.exists():
        with atomic_write(settings) as temporary:
            temporary.write_text(json.dumps({"config": config}, indent=2) + "\n", encoding="utf-8")
    print(f"Wrote {target}; its configuration, in {settings}: {config}")


def _check_settings(path: Path, config: dict) -> None:
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("config")
    except (ValueError, AttributeError):
        found = None
    if found != config:
        raise ValueError(
            f"{path} describes another model than the checkpoint: choose another folder"
        )
