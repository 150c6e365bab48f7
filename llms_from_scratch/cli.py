"""The command ``llms-from-scratch``."""

import argparse
import os
import sys

from llms_from_scratch import __version__
from llms_from_scratch.data import ASSETS, cache_dir, cached_path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="llms-from-scratch", description="Helpers around the book's code."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="list the data files: what, where from, is it here?")
    data.add_argument("name", nargs="?", default="", help="only assets whose name begins with this")
    data.set_defaults(run=show_data)
    args = parser.parse_args(argv)
    return args.run(args)


def show_data(args: argparse.Namespace) -> int:
    """Print each asset of the manifest, where it would come from, and whether it is cached."""
    offline = os.environ.get("LLMS_FROM_SCRATCH_OFFLINE", "0") not in ("", "0")
    print(f"cache:   {cache_dir()}   (set LLMS_FROM_SCRATCH_CACHE to move it)")
    print(
        f"mirror:  {os.environ.get('LLMS_FROM_SCRATCH_MIRROR') or 'none'}"
        "   (set LLMS_FROM_SCRATCH_MIRROR to a folder or a base URL)"
    )
    print(f"network: {'off, LLMS_FROM_SCRATCH_OFFLINE is set' if offline else 'used if needed'}")
    for asset in ASSETS.values():
        if not asset.name.startswith(args.name):
            continue
        size = f"{asset.size:,} bytes" if asset.size else "size unknown"
        print(f"\n{asset.name}\n  {asset.description}\n  {size}, {asset.licence}")
        state = "yes" if cached_path(asset).is_file() else "no"
        print(f"  cached: {state} ({cached_path(asset)})")
        for url in asset.urls:
            print(f"  from:   {url}")
        if asset.sample:
            print(f"  sample: {asset.sample} (bundled, used if nothing else can be had)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
