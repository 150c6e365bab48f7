"""The command ``llms-from-scratch``."""

import argparse
import os
import sys
from pathlib import Path

from llms_from_scratch import __version__
from llms_from_scratch.app.console import one_line, tolerate_any_console
from llms_from_scratch.app.export import add_export
from llms_from_scratch.app.plan import add_plan
from llms_from_scratch.app.serve import add_serve
from llms_from_scratch.data import ASSETS, DownloadError, cache_dir, cached_path, fetch
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.data.http import is_offline
from llms_from_scratch.data.package_file import installed_file


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="llms-from-scratch", description="Helpers around the book's code."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="list the data files: what, where from, is it here?")
    data.add_argument("name", nargs="?", default="", help="only assets whose name begins with this")
    data.add_argument("--fetch", action="store_true", help="download and verify them, then list")
    data.set_defaults(run=show_data)
    convert = commands.add_parser(
        "convert", help="a trained GPT to a Hugging Face folder, or such a folder to a .pth file"
    )
    convert.add_argument(
        "source",
        help="a model: folder, file, a name such as gpt2-tiny, or checkpoint-fsdp of a run",
    )
    convert.add_argument(
        "target",
        type=Path,
        help="a folder to write, or a file ending in .pth (of a checkpoint-fsdp: .safetensors)",
    )
    convert.set_defaults(run=convert_model)
    copy = commands.add_parser("copy", help="a definition of the book as one standalone file")
    copy.add_argument("names", nargs="*", metavar="NAME", help="for example GPTModel")
    copy.add_argument("-o", "--output", type=Path, help="file to write (default: print it)")
    copy.add_argument("--force", action="store_true", help="overwrite an existing file")
    copy.add_argument("--list", action="store_true", help="show what can be copied, by chapter")
    copy.set_defaults(run=copy_definitions)
    add_chat(commands)
    add_export(commands)
    add_serve(commands)
    add_plan(commands)
    args = parser.parse_args(argv)
    tolerate_any_console()
    try:
        return args.run(args)
    except BrokenPipeError:  # the reader of our output, head say, has seen enough
        sys.stdout = None
        return 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, DownloadError) as error:
        parser.exit(2, f"{parser.prog}: error: {one_line(error)}\n")


def show_data(args: argparse.Namespace) -> int:
    """Print each asset of the manifest, where it would come from, and whether it is cached."""
    assets = [asset for asset in ASSETS.values() if asset.name.startswith(args.name)]
    if not assets:
        raise ValueError(
            f"no asset's name begins with {args.name!r}; there are: {', '.join(ASSETS)}"
        )
    if args.fetch:
        if not args.name:
            raise ValueError("--fetch needs a name, or its beginning: all files have gigabytes")
        for asset in assets:
            fetch(asset.name, allow_sample=False)
    print(f"cache:   {cache_dir()}   (set LLMS_FROM_SCRATCH_CACHE to move it)")
    print(
        f"mirror:  {os.environ.get('LLMS_FROM_SCRATCH_MIRROR') or 'none'}"
        "   (set LLMS_FROM_SCRATCH_MIRROR to a folder or a base URL)"
    )
    print(
        f"network: {'off, LLMS_FROM_SCRATCH_OFFLINE is set' if is_offline() else 'used if needed'}"
    )
    for asset in assets:
        size = f"{asset.size:,} bytes" if asset.size else "size unknown"
        print(f"\n{asset.name}\n  {asset.description}\n  {size}, {asset.licence}")
        state = "yes" if cached_path(asset).is_file() else "no"
        print(f"  cached: {state} ({cached_path(asset)})")
        for url in asset.urls:
            print(f"  from:   {url}")
        for part in asset.packages:
            print(f"  from:   package {part.project} {part.version} of your pip index")
            if path := installed_file(part):
                print(f"          installed: {path}")
        if asset.must_accept:
            print(f"  terms:  {asset.licence_text}")
            print(f"          accepted with LLMS_FROM_SCRATCH_ACCEPT_LICENSE={asset.must_accept}")
        if asset.sample:
            print(f"  sample: {asset.sample} (bundled, used if nothing else can be had)")
    return 0


def convert_model(args: argparse.Namespace) -> int:
    """Write a model in the other format; see ``load_pretrained`` for what can be read."""
    from llms_from_scratch.app.sharded_models import convert_sharded, sharded_checkpoint_in

    if args.target.exists():
        raise ValueError(f"{args.target} exists: choose another name, nothing is overwritten")
    if folder := sharded_checkpoint_in(args.source, args.target):
        convert_sharded(folder, args.target)
        return 0
    import torch

    from llms_from_scratch.weights.gpt2 import export_to_hub_folder
    from llms_from_scratch.weights.pretrained import load_pretrained

    if args.target.suffix in (".safetensors", ".bin", ".pt", ".gguf", ".json", ".zip"):
        raise ValueError(
            f"{args.target}: a file ends in .pth here, and a folder has no such ending; give "
            f"{args.target.with_suffix('')} or {args.target.with_suffix('.pth')}"
        )
    pretrained = load_pretrained(args.source)
    if args.target.suffix == ".pth":
        with atomic_write(args.target) as temporary:
            torch.save(pretrained.model.state_dict(), temporary)
    else:
        export_to_hub_folder(pretrained.model, pretrained.config, args.target)
    print(f"Wrote {args.target}; its configuration: {pretrained.config}")
    return 0


def copy_definitions(args: argparse.Namespace) -> int:
    """Print or write the named definitions with all that they need; see ``copying``."""
    from llms_from_scratch.app.copying import needs_network, packages_to_install, standalone

    if args.list:
        return list_definitions()
    if not args.names:
        raise ValueError("give one or more names, or --list to see them")
    if args.output and args.output.exists() and not args.force:
        raise ValueError(f"{args.output} exists: choose another name, or add --force")
    text = standalone(args.names)
    print("It needs:", ", ".join(packages_to_install(text)) or "Python alone", file=sys.stderr)
    if needs_network(text):
        print("and a network once: tiktoken downloads GPT-2's vocabulary", file=sys.stderr)
    if args.output is None:
        print(text, end="")
    else:
        with atomic_write(args.output) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"Wrote {args.output}", file=sys.stderr)
    return 0


def list_definitions() -> int:
    """Print the classes and functions that ``copy`` knows, by chapter."""
    from llms_from_scratch.app.copying import can_be_copied
    from llms_from_scratch.app.source_index import listed_definitions

    module = None
    for name, definition in listed_definitions():
        if definition.module != module:
            module = definition.module
            print(f"\n{module}")
        mark = "" if can_be_copied(definition) else " [only to import]"
        print(f"  {name:<28} {definition.summary}{mark}")
    print("\n[only to import]: needs files of the package, so it cannot stand alone.")
    return 0


def add_chat(commands) -> None:
    chat = commands.add_parser("chat", help="talk to a model, your own or a pretrained one")
    chat.add_argument(
        "checkpoint", help="its folder or file, or a name such as smollm2-135m-instruct"
    )
    chat.add_argument("--prompt", help="answer this one message, then end")
    chat.add_argument(
        "--prompt-style",
        choices=("alpaca", "phi3"),
        help="(default: the one it was finetuned with)",
    )
    chat.add_argument("--max-new-tokens", type=int, default=256, help="default: 256")
    chat.add_argument("--temperature", type=float, default=0.0, help="default: 0, no randomness")
    chat.add_argument("--top-k", type=int, help="draw from so many tokens (default: from all)")
    chat.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    chat.add_argument("--seed", type=int, default=123, help="of the random draws (default: 123)")
    chat.set_defaults(run=chat_with_model)


def chat_with_model(args: argparse.Namespace) -> int:
    """Answer messages in the terminal; see ``chat``."""
    from llms_from_scratch.app.chat import run_chat

    return run_chat(args)


if __name__ == "__main__":
    sys.exit(main())
