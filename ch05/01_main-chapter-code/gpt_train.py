"""Pretrain a GPT on a text, as in chapter 5.

Examples:
    python gpt_train.py                     # the book's settings on the book's text
    python gpt_train.py --preset quick      # a small GPT, a few minutes on a laptop CPU
    python gpt_train.py --data my-book.txt --out runs/my-book
    python gpt_train.py --out runs/my-book --data my-book.txt --resume      # after Ctrl-C
    python gpt_train.py --settings best.json    # what ../05_bonus_hparam_tuning has found
    torchrun --nproc-per-node 2 gpt_train.py --parallel ddp     # two processes; see SCALING.md

A folder that holds a run is not written to, unless --resume or --overwrite is given.
"""

import argparse
import contextlib
import io
import json
import os
import warnings
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
    default_folder,
    hash_of_text,
    open_run_folder,
)
from llms_from_scratch.app.script_tools import add_parallel_options, pick_device, short_errors
from llms_from_scratch.appendix_d import learning_rate
from llms_from_scratch.ch05 import generate_and_print_sample, plot_losses
from llms_from_scratch.data import ASSETS, SampleDataWarning, load_text, resolve
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.checkpoint import describe_vocabulary
from llms_from_scratch.training.loop import Trainer
from llms_from_scratch.training.parallel import (
    check_divisible,
    checkpoint_activations,
    join,
    leave,
)
from previous_chapters import GPTModel, create_dataloader_v1

GPT_CONFIG_124M = {
    "vocab_size": 50257,  # size of the GPT-2 vocabulary
    "context_length": 256,  # shortened: GPT-2 has 1024
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}

OTHER_SETTINGS = {"learning_rate": 5e-4, "num_epochs": 10, "batch_size": 2, "weight_decay": 0.1}
# With these three, the learning rate rises and falls as in appendix D, and gradients are clipped
SCHEDULE = ("warmup_steps", "initial_lr", "min_lr")

# Each preset: changes to the model's configuration, and to the settings
PRESETS = {
    "book": ({}, {}),
    "quick": (
        {"context_length": 128, "emb_dim": 192, "n_heads": 6, "n_layers": 4},
        {"learning_rate": 1e-3, "num_epochs": 12, "batch_size": 4},
    ),
    "tiny": (
        {"context_length": 32, "emb_dim": 32, "n_heads": 4, "n_layers": 2},
        {"num_epochs": 1, "batch_size": 16},
    ),
}

START_CONTEXT = "Every effort moves you"

MODEL_FILES = ("model.pth", "settings.json", "loss.pdf", "loss.png")
RESULTS = (CHECKPOINT, SHARDED_CHECKPOINT, "train-log.jsonl", "samples.txt", *MODEL_FILES)


def main(
    gpt_config: dict,
    settings: dict,
    *,
    data: str = "the-verdict",
    device: str = "auto",
    seed: int = 123,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    parallel: str | None = None,
    activation_checkpointing: bool = False,
    accumulate: int = 1,
):
    """Train, and return ``(train_losses, val_losses, tokens_seen, model)``.

    With ``out``, that folder gets ``train-log.jsonl`` (a line per update), ``samples.txt``,
    ``checkpoint.pth`` and, at the end, ``model.pth``, ``settings.json``, ``loss.pdf`` and
    ``loss.png``; it is a ``ValueError`` if it has some of them, unless ``resume`` or ``overwrite``
    is set. ``parallel`` is "ddp" or "fsdp" in processes that ``torchrun`` has started;
    ``accumulate`` batches make one update. If a signal stops the run, a checkpoint is written and
    ``SystemExit`` with 128 + the signal's number is raised.
    """
    check_settings(settings)
    check_divisible(settings["batch_size"], parallel)
    team = join(parallel, device, seed)
    if out is not None:
        if team.is_main:  # the others would find what it has written
            open_run_folder(out, RESULTS, resume=resume, overwrite=overwrite, parallel=parallel)
        team.wait()
        out = Path(out)
    torch.manual_seed(seed)
    device = team.device or pick_device(device)
    text = load_text(data)
    tokenizer = get_tokenizer("gpt2")

    model = GPTModel(gpt_config).to(device)
    if activation_checkpointing:
        checkpoint_activations(model)
    trained = team.wrap(model)
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    train_loader, val_loader = map(team.deal, create_loaders(text, gpt_config, settings))
    with_schedule = SCHEDULE[0] in settings
    updates = -(-len(train_loader) // accumulate)  # of an epoch, rounded up
    trainer = Trainer(
        trained,
        optimizer,
        train_loader,
        val_loader,
        device,
        num_epochs=settings["num_epochs"],
        eval_freq=5,
        eval_iter=1,
        accumulate=accumulate,
        scheduler=make_scheduler(optimizer, updates, settings) if with_schedule else None,
        max_grad_norm=1.0 if with_schedule else None,
        config=gpt_config,
        vocabulary=describe_vocabulary(tokenizer),
        settings=identify_run(text, settings, seed),
        checkpoint_path=out / checkpoint_name(parallel) if out else None,
        checkpoint_freq=100,
        log_path=out / "train-log.jsonl" if out else None,
        on_epoch_end=lambda: write_sample(model, tokenizer, device, out, team.is_main),
        team=team,
    )
    if resume:
        trainer.resume()
        if trainer.is_finished and team.is_main:
            print(f"The run was finished after {trainer.progress.step} updates; none is added.")
    elif out and team.is_main:
        clear_run_folder(out, RESULTS)

    stopped_by = trainer.run()
    if stopped_by:
        if team.is_main:
            print(f"Stopped after {trainer.progress.step} updates; add --resume to continue.")
        raise SystemExit(128 + stopped_by)
    progress = trainer.progress
    weights = team.state_dict(trained)
    if out and team.is_main:
        origin = {"data": data, "data_source": source_of(data), "seed": seed}
        save_results(out, weights, progress, gpt_config, settings | origin)
    team.wait()
    return progress.train_losses, progress.val_losses, progress.track_tokens_seen, model


def source_of(data: str) -> str:
    """Where the text came from: "file", or for a known text "cache", "sample" and so on."""
    if data not in ASSETS:
        return "file"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SampleDataWarning)  # it has been said before
        return resolve(data).source


def identify_run(text: str, settings: dict, seed: int) -> dict:
    """What must be the same when a run is resumed; it may become longer, so not the epochs."""
    kept = {key: value for key, value in settings.items() if key != "num_epochs"}
    return {"seed": seed, "data_sha256": hash_of_text(text), **kept}


def check_settings(settings: dict) -> None:
    """Raise ``ValueError`` if the settings lack a key, have an unknown one, or cannot work."""
    wanted = OTHER_SETTINGS.keys() | (set(SCHEDULE) if settings.keys() & set(SCHEDULE) else set())
    unknown, missing = settings.keys() - wanted, wanted - settings.keys()
    if unknown or missing:
        raise ValueError(
            f"settings must be {sorted(OTHER_SETTINGS)}, and all or none of {sorted(SCHEDULE)}; "
            f"unknown: {sorted(unknown)}, missing: {sorted(missing)}"
        )
    for name in ("num_epochs", "batch_size"):
        if settings[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {settings[name]}")


def make_scheduler(optimizer, batches: int, settings: dict):
    """The learning rate of appendix D, as a factor of the optimizer's own, which is the peak."""
    peak, total = settings["learning_rate"], batches * settings["num_epochs"]
    rates = settings["initial_lr"], peak, settings["min_lr"]

    def factor(step: int) -> float:
        return learning_rate(min(step, total), total, settings["warmup_steps"], *rates) / peak

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def read_settings(path: str | Path) -> tuple[dict, dict]:
    """Configuration and settings from a JSON file with the keys "config" and "settings"."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return dict(content["config"]), dict(content["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is no file of settings: it must be JSON with "config" and "settings", '
            f"as hparam_search.py writes it ({type(error).__name__}: {error})"
        ) from None


def create_loaders(text: str, gpt_config: dict, settings: dict, train_ratio: float = 0.90):
    """Split the text by characters, 90 % to learn from and 10 % to test on, and make loaders."""
    split = int(train_ratio * len(text))
    check_length(text, split, gpt_config["context_length"])
    window = {
        "batch_size": settings["batch_size"],
        "max_length": gpt_config["context_length"],
        "stride": gpt_config["context_length"],
    }
    train_loader = create_dataloader_v1(text[:split], **window, shuffle=True, drop_last=True)
    val_loader = create_dataloader_v1(text[split:], **window, shuffle=False, drop_last=False)
    return train_loader, val_loader


def check_length(text: str, split: int, context_length: int) -> None:
    """Raise ``ValueError`` if a part of the text has less than one window of tokens."""
    tokenizer = get_tokenizer("gpt2")
    for name, part in (("learn from", text[:split]), ("test on", text[split:])):
        count = len(tokenizer.encode_ordinary(part))
        if count <= context_length:
            raise ValueError(
                f"the text is too short: the part to {name} has {count} tokens, and a context of "
                f"{context_length} needs at least {context_length + 1}; use a longer text, or a "
                "--preset with a shorter context"
            )


def write_sample(model, tokenizer, device, out: Path | None, is_main: bool = True) -> None:
    """Print what the model writes after one epoch, and append it to ``samples.txt``.

    With ``--parallel fsdp``, all processes are needed for the model to write; the main one prints.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        generate_and_print_sample(model, tokenizer, device, START_CONTEXT)
    if is_main:
        tqdm.write(printed.getvalue().rstrip())
    if out and is_main:
        with (out / "samples.txt").open("a", encoding="utf-8") as file:
            file.write(printed.getvalue())


def save_results(out: Path, weights: dict, progress, gpt_config: dict, settings: dict) -> None:
    with atomic_write(out / "model.pth") as temporary:
        torch.save(weights, temporary)
    results = {
        "config": gpt_config,
        "settings": settings,
        "updates": progress.step,
        "tokens_seen": progress.tokens_seen,
        "training_seconds": round(progress.seconds, 1),
        "final_train_loss": progress.train_losses[-1],
        "final_val_loss": progress.val_losses[-1],
    }
    with atomic_write(out / "settings.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    tokens = progress.track_tokens_seen
    epochs = [settings["num_epochs"] * seen / progress.tokens_seen for seen in tokens]
    plot_losses(
        epochs,
        tokens,
        progress.train_losses,
        progress.val_losses,
        save_to=(out / "loss.pdf", out / "loss.png"),
    )
    plt.close()


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="book", help="sizes (default: book)")
    parser.add_argument(
        "--settings", help="instead of a preset: a JSON file with config and settings"
    )
    parser.add_argument(
        "--data",
        default="the-verdict",
        help="a UTF-8 text file, or the name of a known text (default: the-verdict)",
    )
    parser.add_argument("--epochs", type=int, help="passes over the text (default: by preset)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--seed", type=int, default=123, help="of the random numbers (default: 123)"
    )
    add_parallel_options(parser)
    add_run_options(parser, None, "runs/gpt_train, with another preset runs/gpt_train-PRESET")
    return parser, parser.parse_args()


if __name__ == "__main__":
    plt.switch_backend("agg")  # plots go to files only
    parser, args = parse_args()
    with short_errors(parser):
        if args.settings:
            gpt_config, settings = read_settings(args.settings)
            args.preset = Path(args.settings).stem
        else:
            config_changes, settings_changes = PRESETS[args.preset]
            gpt_config, settings = (
                GPT_CONFIG_124M | config_changes,
                OTHER_SETTINGS | settings_changes,
            )
        if args.epochs is not None:
            settings["num_epochs"] = args.epochs
        out = default_folder("gpt_train", args.preset) if args.out is None else args.out
        main(
            gpt_config,
            settings,
            data=args.data,
            device=args.device,
            seed=args.seed,
            out=out,
            resume=args.resume,
            overwrite=args.overwrite,
            parallel=args.parallel,
            activation_checkpointing=args.activation_checkpointing,
            accumulate=args.accumulate,
        )
        leave()
        if os.environ.get("RANK", "0") == "0":
            print(f"Wrote model.pth, loss.pdf, loss.png and train-log.jsonl to {out}")
