"""Pretrain a GPT on a folder of text files, as long as it takes, and continue after a stop.

    python prepare_dataset.py --data_dir my_books --output_dir gutenberg_preprocessed
    python pretraining_simple.py --data_dir gutenberg_preprocessed
    python pretraining_simple.py --data_dir gutenberg_preprocessed --resume    # after Ctrl-C
    torchrun --nproc-per-node 2 pretraining_simple.py --parallel fsdp    # two devices; SCALING.md

Each file is tokenized once and kept as a file of token ids; nothing has to fit into memory. The
last tenth of each file is for validation. The result can be sampled:

    python ../01_main-chapter-code/gpt_generate.py --model model_checkpoints/model_pg_final.pth
"""

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
from matplotlib import pyplot as plt
from tqdm import tqdm

from llms_from_scratch.app.run_folder import (
    CHECKPOINT,
    SHARDED_CHECKPOINT,
    add_run_options,
    checkpoint_name,
    clear_run_folder,
    hash_of_text,
    open_run_folder,
)
from llms_from_scratch.app.script_tools import add_parallel_options, pick_device, short_errors
from llms_from_scratch.ch04 import GPT_CONFIG_124M, GPTModel
from llms_from_scratch.ch05 import generate_and_print_sample, plot_losses
from llms_from_scratch.data.files import atomic_write, sha256_of
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.checkpoint import describe_vocabulary
from llms_from_scratch.training.loop import Trainer
from llms_from_scratch.training.parallel import (
    Alone,
    check_divisible,
    checkpoint_activations,
    join,
    leave,
)
from llms_from_scratch.training.token_files import create_dataloaders, tokenize_folder

DEBUG_CONFIG = GPT_CONFIG_124M | {
    "context_length": 10,
    "emb_dim": 12,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
}
START_CONTEXT = "Every effort moves you"
MODEL_FILES = ("model_pg_final.pth", "settings.json", "loss.pdf", "loss.png")
RESULTS = (CHECKPOINT, SHARDED_CHECKPOINT, "train-log.jsonl", *MODEL_FILES)


def main(args: argparse.Namespace) -> None:
    check_numbers(args)
    check_divisible(args.batch_size, args.parallel)
    team = join(args.parallel, args.device, args.seed)
    if team.is_main:  # it makes the folder and the token files, and the others find them
        open_output(args)
        token_paths = find_tokens(args)
    team.wait()
    if not team.is_main:
        token_paths = find_tokens(args)
    output_dir = Path(args.output_dir)
    device = team.device or pick_device(args.device)
    tokenizer = get_tokenizer("gpt2")
    config = DEBUG_CONFIG if args.debug else GPT_CONFIG_124M
    torch.manual_seed(args.seed)
    model = GPTModel(config).to(device)
    if args.activation_checkpointing:
        checkpoint_activations(model)
    low_precision = torch.bfloat16 if device.type == "cuda" else None
    trained = team.wrap(model, low_precision)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=args.lr, weight_decay=0.1)
    train_loader, val_loader = map(team.deal, make_loaders(args, token_paths, config))
    trainer = Trainer(
        trained,
        optimizer,
        train_loader,
        val_loader,
        device,
        num_epochs=args.n_epochs,
        eval_freq=args.eval_freq,
        eval_iter=5,
        accumulate=args.accumulate,
        autocast_dtype=None if args.parallel == "fsdp" else low_precision,  # which casts by itself
        config=config,
        vocabulary=describe_vocabulary(tokenizer),
        settings=identify_run(args, token_paths),
        checkpoint_path=output_dir / checkpoint_name(args.parallel),
        checkpoint_freq=args.save_ckpt_freq,
        log_path=output_dir / "train-log.jsonl",
        on_step=lambda step: print_sample(step, args, model, tokenizer, device, team),
        team=team,
    )
    say = print if team.is_main else lambda line: None
    if args.resume:
        trainer.resume()
        if trainer.is_finished:
            say(f"The run was finished after {trainer.progress.step} updates; none is added.")
    elif team.is_main:
        clear_run_folder(output_dir, RESULTS)
    stopped_by = trainer.run()
    if stopped_by:
        say(f"Stopped after {trainer.progress.step} updates; add --resume to continue.")
        sys.exit(128 + stopped_by)
    weights = team.state_dict(trained)
    if team.is_main:
        save_results(output_dir, weights, trainer.progress, config, args)
    team.wait()
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    say(f"Maximum GPU memory allocated: {memory / 1e9:.2f} GB")
    say(f"Wrote {', '.join(MODEL_FILES)} and train-log.jsonl to {output_dir}")


def open_output(args: argparse.Namespace) -> None:
    open_run_folder(
        args.output_dir,
        RESULTS,
        resume=args.resume,
        overwrite=args.overwrite,
        option="--output_dir",
        parallel=args.parallel,
    )


def find_tokens(args: argparse.Namespace) -> list[Path]:
    """The token files of all texts, made if they are not there yet."""
    return tokenize_folder(args.data_dir, Path(args.output_dir, "tokens"), get_tokenizer("gpt2"))


def make_loaders(args: argparse.Namespace, token_paths: list[Path], config: dict):
    return create_dataloaders(
        token_paths,
        train_ratio=0.90,
        batch_size=args.batch_size,
        max_length=config["context_length"],
        stride=config["context_length"],
        seed=args.seed,
    )


def check_numbers(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for numbers with which nothing can be trained, or with which never."""
    for name in ("n_epochs", "print_sample_iter", "eval_freq", "save_ckpt_freq", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if not 0 < args.lr < float("inf"):
        raise ValueError(f"--lr must be a number above 0, got {args.lr}")


def identify_run(args: argparse.Namespace, token_paths: list[Path]) -> dict:
    """What must be the same when a run is resumed; it may become longer, so not the epochs."""
    hashes = "".join(sha256_of(path) for path in token_paths)
    kept = {name: getattr(args, name) for name in ("lr", "batch_size", "seed")}
    return {"data_sha256": hash_of_text(hashes)} | kept


def save_results(
    folder: Path, weights: dict, progress, config: dict, args: argparse.Namespace
) -> None:
    with atomic_write(folder / "model_pg_final.pth") as temporary:
        torch.save(weights, temporary)
    results = {
        "config": config,
        "settings": {name: value for name, value in vars(args).items() if name != "overwrite"},
        "updates": progress.step,
        "tokens_seen": progress.tokens_seen,
        "training_seconds": round(progress.seconds, 1),
    }
    with atomic_write(folder / "settings.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    epochs = [args.n_epochs * n / progress.tokens_seen for n in progress.track_tokens_seen]
    plot_losses(
        epochs,
        progress.track_tokens_seen,
        progress.train_losses,
        progress.val_losses,
        save_to=(folder / "loss.pdf", folder / "loss.png"),
    )
    plt.close()


def print_sample(
    step: int, args: argparse.Namespace, model, tokenizer, device, team: Alone
) -> None:
    """Print what the model writes, now and then; with fsdp, all processes are needed for it."""
    if step % args.print_sample_iter == 0:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            generate_and_print_sample(model, tokenizer, device, START_CONTEXT)
        if team.is_main:
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
    folders = "model_checkpoints, with --debug model_checkpoints-debug"
    add_run_options(parser, None, folders, option="--output_dir")
    add("--n_epochs", type=int, default=1, help="passes over the texts (default: 1)")
    add("--print_sample_iter", type=int, default=1000, help="updates per sample (default: 1000)")
    add("--eval_freq", type=int, default=100, help="updates per evaluation (default: 100)")
    add("--save_ckpt_freq", type=int, default=1000, help="updates per checkpoint (default: 1000)")
    add("--lr", type=float, default=5e-4, help="learning rate (default: 0.0005)")
    add("--batch_size", type=int, default=4, help="of all processes together (default: 4)")
    add("--seed", type=int, default=123, help="of the random numbers (default: 123)")
    add_parallel_options(parser)
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add(
        "--debug",
        nargs="?",
        const=True,
        default=False,
        type=_boolean,
        help="a tiny model, to try things out in seconds",
    )
    args = parser.parse_args()
    if args.output_dir is None:
        args.output_dir = "model_checkpoints-debug" if args.debug else "model_checkpoints"
    return parser, args


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
        main(args)
        leave()
