"""Pretrain a GPT on a folder of text files, as long as it takes, and continue after a stop.

    python prepare_dataset.py --data_dir my_books --output_dir gutenberg_preprocessed
    python pretraining_simple.py --data_dir gutenberg_preprocessed
    python pretraining_simple.py --data_dir gutenberg_preprocessed --resume    # after Ctrl-C

Each file is tokenized once and kept as a file of token ids; nothing has to fit into memory. The
last tenth of each file is for validation.
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from tqdm import tqdm

from llms_from_scratch.app.script_tools import pick_device, short_errors, writable_folder
from llms_from_scratch.ch04 import GPT_CONFIG_124M, GPTModel
from llms_from_scratch.ch05 import generate_and_print_sample, plot_losses
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.checkpoint import describe_vocabulary
from llms_from_scratch.training.loop import Trainer
from llms_from_scratch.training.token_files import create_dataloaders, tokenize_file

DEBUG_CONFIG = GPT_CONFIG_124M | {
    "context_length": 10,
    "emb_dim": 12,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
}
START_CONTEXT = "Every effort moves you"


def main(args: argparse.Namespace) -> None:
    device = pick_device(args.device)
    output_dir = writable_folder(args.output_dir)
    tokenizer = get_tokenizer("gpt2")
    config = DEBUG_CONFIG if args.debug else GPT_CONFIG_124M
    torch.manual_seed(123)
    model = GPTModel(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.1)
    train_loader, val_loader = create_dataloaders(
        tokenize_folder(Path(args.data_dir), output_dir / "tokens", tokenizer),
        train_ratio=0.90,
        batch_size=args.batch_size,
        max_length=config["context_length"],
        stride=config["context_length"],
    )
    trainer = Trainer(
        model,
        optimizer,
        train_loader,
        val_loader,
        device,
        num_epochs=args.n_epochs,
        eval_freq=args.eval_freq,
        eval_iter=5,
        autocast_dtype=torch.bfloat16 if device.type == "cuda" else None,
        config=config,
        vocabulary=describe_vocabulary(tokenizer),
        checkpoint_path=output_dir / "checkpoint.pth",
        checkpoint_freq=args.save_ckpt_freq,
        log_path=output_dir / "train-log.jsonl",
        on_step=lambda step: print_sample(step, args.print_sample_iter, model, tokenizer, device),
    )
    if args.resume:
        trainer.resume()
    else:
        (output_dir / "train-log.jsonl").unlink(missing_ok=True)
    stopped_by = trainer.run()
    if stopped_by:
        print(f"Stopped after {trainer.progress.step} updates; add --resume to continue.")
        sys.exit(128 + stopped_by)

    with atomic_write(output_dir / "model_pg_final.pth") as temporary:
        torch.save(model.state_dict(), temporary)
    progress = trainer.progress
    epochs = [args.n_epochs * n / progress.tokens_seen for n in progress.track_tokens_seen]
    plot_losses(
        epochs,
        progress.track_tokens_seen,
        progress.train_losses,
        progress.val_losses,
        save_to=(output_dir / "loss.pdf", output_dir / "loss.png"),
    )
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    print(f"Maximum GPU memory allocated: {memory / 1e9:.2f} GB")


def tokenize_folder(folder: Path, token_folder: Path, tokenizer) -> list[Path]:
    """Token files of all .txt files below a folder, made now if they are missing or outdated."""
    texts = sorted(folder.rglob("*.txt"))
    if not texts:
        raise ValueError(f"there are no .txt files below {folder}: see prepare_dataset.py")
    return [
        tokenize_file(
            path,
            token_folder / "-".join(path.relative_to(folder).with_suffix(".npy").parts),
            tokenizer,
        )
        for path in tqdm(texts, desc="Tokenizing", unit="file")
    ]


def print_sample(step: int, every: int, model, tokenizer, device) -> None:
    if step % every == 0:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            generate_and_print_sample(model, tokenizer, device, START_CONTEXT)
        tqdm.write(printed.getvalue().rstrip())


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data_dir",
        default="gutenberg_preprocessed",
        help="folder with .txt files, at any depth (default: gutenberg_preprocessed)",
    )
    add("--output_dir", default="model_checkpoints", help="default: model_checkpoints")
    add("--n_epochs", type=int, default=1, help="passes over the texts (default: 1)")
    add("--print_sample_iter", type=int, default=1000, help="updates per sample (default: 1000)")
    add("--eval_freq", type=int, default=100, help="updates per evaluation (default: 100)")
    add("--save_ckpt_freq", type=int, default=1000, help="updates per checkpoint (default: 1000)")
    add("--lr", type=float, default=5e-4, help="learning rate (default: 0.0005)")
    add("--batch_size", type=int, default=4, help="default: 4")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--resume", action="store_true", help="continue the run in --output_dir")
    add(
        "--debug",
        nargs="?",
        const=True,
        default=False,
        type=_boolean,
        help="a tiny model, to try things out in seconds",
    )
    return parser, parser.parse_args()


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


if __name__ == "__main__":
    plt.switch_backend("agg")  # plots go to files only
    parser, args = parse_args()
    with short_errors(parser):
        try:
            main(args)
        except FloatingPointError as error:
            sys.exit(f"{parser.prog}: {error}")
