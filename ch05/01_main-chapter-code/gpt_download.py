"""Getting OpenAI's GPT-2 checkpoints, under the names of the book; TensorFlow is not needed.

python gpt_download.py --model-size 124M --models-dir gpt2
"""

import argparse
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.ch05 import download_and_load_gpt2, load_gpt2_params_from_tf_ckpt
from llms_from_scratch.data.http import download
from llms_from_scratch.data.manifest import GPT2_SIZES

__all__ = ["download_and_load_gpt2", "download_file", "load_gpt2_params_from_tf_ckpt"]


def download_file(url: str, destination: str | Path, backup_url: str | None = None) -> None:
    """Download a file unless it is there; raises ``DownloadError`` if neither URL works."""
    urls = [url] + ([backup_url] if backup_url else [])
    download(urls, Path(destination), check=lambda path: None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-size", default="124M", choices=GPT2_SIZES, help="default: 124M")
    parser.add_argument("--models-dir", default="gpt2", help="folder to keep it in (default: gpt2)")
    args = parser.parse_args()
    with short_errors(parser):
        settings, params = download_and_load_gpt2(args.model_size, args.models_dir)
    print("Settings:", settings)
    print("Parameter dictionary keys:", list(params))
