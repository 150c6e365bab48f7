"""What the scripts on training speed share: options, sizes, the text, and what a run leaves."""

import argparse
import json
from pathlib import Path

import torch
from matplotlib import pyplot as plt

from llms_from_scratch.app.run_folder import clear_run_folder, open_run_folder
from llms_from_scratch.ch04 import GPT_CONFIG_124M
from llms_from_scratch.ch05 import plot_losses
from llms_from_scratch.data import load_text
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.training.distributed import positive_int

RESULTS = ("loss.pdf", "losses.json", "model.pth")
START_CONTEXT = "Every effort moves you"
PADDED_VOCAB_SIZE = 50304  # 64 * 786; the vocabulary has 50257 tokens

# Each preset: changes to the model's configuration, and to the settings
PRESETS = {
    "book": ({}, {}),
    "tiny": (
        {"context_length": 32, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0},
        {"batch_size": 8, "num_epochs": 1, "eval_freq": 5, "num_workers": 0},
    ),
}


def speed_parser(
    description: str, name: str, *, fast: bool, with_device: bool = True
) -> argparse.ArgumentParser:
    """The options of all these scripts, and those of the ``fast`` ones."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="book", help="sizes (default: book)")
    parser.add_argument(
        "--data",
        default="middlemarch",
        help="a UTF-8 text file, or the name of a known text (default: middlemarch)",
    )
    for option, about in (
        ("--epochs", "passes over the text"),
        ("--batch-size", "windows per update, and process"),
    ):
        parser.add_argument(option, type=positive_int, help=f"{about} (default: by preset)")
    if with_device:
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--seed", type=int, default=123, help="random numbers (default: 123)")
    if fast:
        parser.add_argument(
            "--dtype",
            choices=("bfloat16", "float32"),
            default="bfloat16",
            help="of the computation (default: bfloat16)",
        )
        parser.add_argument(
            "--compile",
            action=argparse.BooleanOptionalAction,
            help="compile the blocks (default: on a GPU that can, not on a CPU)",
        )
    parser.add_argument("--out", help=f"folder for results (default: runs/{name}[-PRESET])")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    return parser


def sizes_of(args: argparse.Namespace, settings: dict) -> tuple[dict, dict]:
    """Configuration of the model, and settings, from the preset and the other options."""
    config_changes, settings_changes = PRESETS[args.preset]
    chosen = {"num_epochs": args.epochs, "batch_size": args.batch_size}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    return GPT_CONFIG_124M | config_changes, settings | settings_changes | chosen


def out_folder(args: argparse.Namespace, name: str, is_writer: bool = True) -> Path | None:
    """The folder for results; None for a process that does not write them."""
    if not is_writer:
        return None
    path = args.out
    if path is None:
        path = f"runs/{name}" if args.preset == "book" else f"runs/{name}-{args.preset}"
    return open_run_folder(path, RESULTS, overwrite=args.overwrite)


def split_text(data: str, train_ratio: float = 0.90) -> tuple[str, str]:
    """A text, cut into a part to learn from and a part to test on, by characters."""
    text = load_text(data)
    split = int(train_ratio * len(text))
    return text[:split], text[split:]


def save_results(out: Path | None, state: dict, num_epochs: int, results: tuple) -> None:
    """Write weights, losses and their plot; ``results`` is what the training loop returns."""
    if out is None:
        return
    train_losses, val_losses, tokens_seen = results
    clear_run_folder(out, RESULTS)
    with atomic_write(out / "losses.json") as temporary:
        names = ("train_losses", "val_losses", "tokens_seen")
        content = json.dumps(dict(zip(names, results, strict=True)))
        temporary.write_text(content + "\n", encoding="utf-8")
    with atomic_write(out / "model.pth") as temporary:
        torch.save(state, temporary)
    plt.switch_backend("agg")  # plots go to files only
    epochs = torch.linspace(0, num_epochs, len(train_losses)).tolist()
    plot_losses(epochs, tokens_seen, train_losses, val_losses, save_to=(out / "loss.pdf",))
    plt.close()
    print(f"Wrote model.pth, losses.json and loss.pdf to {out}")
