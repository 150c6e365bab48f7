"""``llms-from-scratch export``: a model in the formats that other programs read.

Nothing heavy is imported before the command runs, so that ``--help`` answers at once.
"""

import argparse
import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

FORMATS = ("hf", "gguf", "ollama")
WEIGHT_TYPES = {  # what --dtype may be; the first is GGUF's default, the hub's is the model's own
    "hf": ("F32", "F16", "BF16"),
    "gguf": ("F16", "F32", "Q8_0"),
    "ollama": ("F16", "F32", "Q8_0"),
}
# All that an export writes: --force replaces a folder with nothing else in it
WRITTEN = frozenset(
    """
    README.md Modelfile model.gguf config.json generation_config.json model.safetensors
    tokenizer.json tokenizer_config.json special_tokens_map.json chat_template.jinja
    vocab.json merges.txt
    """.split()
)


def add_export(commands) -> None:
    export = commands.add_parser(
        "export", help="a model for transformers (hf), llama.cpp (gguf) or Ollama"
    )
    export.add_argument("model", help="its folder or file, or a name such as gpt2-tiny")
    export.add_argument("--format", required=True, choices=FORMATS, help="what to write")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a folder")
    export.add_argument(
        "--dtype",
        choices=sorted({dtype for allowed in WEIGHT_TYPES.values() for dtype in allowed}),
        help="of the weights (default: the model's own for hf, F16 for gguf and ollama)",
    )
    export.add_argument("--force", action="store_true", help="replace an earlier export")
    export.set_defaults(run=export_command)


def export_command(args: argparse.Namespace) -> int:
    """Load the model, write it, and say how to use it."""
    dtype = args.dtype or (WEIGHT_TYPES[args.format][0] if args.format != "hf" else None)
    if dtype not in (None, *WEIGHT_TYPES[args.format]):
        raise ValueError(
            f"--format {args.format} knows no --dtype {dtype}, only "
            f"{', '.join(WEIGHT_TYPES[args.format])}"
        )
    _check_target(args.output, args.model, args.force)
    from llms_from_scratch.app.exporting import export_model, load_any

    loaded = load_any(args.model)
    with whole_folder(args.output, args.force) as folder:
        export_model(loaded, folder, args.format, dtype)
    print(f"Wrote {args.output}: {', '.join(sorted(p.name for p in args.output.iterdir()))}")
    return 0


def _check_target(target: Path, source: str, force: bool) -> None:
    """Raise ``ValueError`` if a folder may not be written."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{target} is a file: choose another name")
    if not force:
        raise ValueError(f"{target} exists: choose another name, or add --force to replace it")
    inside = {path.name for path in target.iterdir()}
    others = sorted(inside - WRITTEN)
    if others:
        raise ValueError(
            f"{target} has {others[0]}, which no export has written: --force replaces exports "
            "only, choose another folder"
        )
    origin = Path(source)
    if origin.exists() and target.resolve() in (origin.resolve(), origin.resolve().parent):
        raise ValueError(f"{target} is where the model comes from: choose another folder")


@contextlib.contextmanager
def whole_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``, which takes its place when it is complete.

    If the block raises, the temporary folder is removed and ``target`` stays as it was. An
    ``OSError`` becomes one that names ``target``.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if force and target.exists():
            target.rename(old)
        temporary.rename(target)
    except OSError as error:
        if old.exists():
            old.rename(target)
        raise ValueError(
            f"cannot write {target} ({error.strerror or error}): choose another folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            missing = []
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
