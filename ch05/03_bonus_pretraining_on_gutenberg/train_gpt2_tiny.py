"""Train gpt2-tiny, the small pretrained GPT that comes with this repository.

    python books_from_debian.py --output_dir books
    python train_gpt2_tiny.py --data_dir books --output_dir runs/gpt2-tiny

It has GPT-2's architecture and vocabulary. Two thirds of that vocabulary do not occur in the books,
and a softmax over all of it would take most of the time; so the model is trained in two stages:

1. on the token ids that occur, renumbered without gaps;
2. briefly on the full vocabulary. A token that never occurred starts as the mean of the shorter
   tokens that spell it, and stage 2 teaches the model not to expect it.

Ctrl-C saves and stops; the same command with --resume continues exactly.
"""

import argparse
import math
import sys
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import numpy as np
import torch

from llms_from_scratch.app.run_folder import (
    CHECKPOINT,
    add_run_options,
    clear_run_folder,
    open_run_folder,
)
from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.ch04 import GPTModelFast
from llms_from_scratch.data.files import atomic_write, sha256_of
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.loop import Trainer
from llms_from_scratch.training.token_files import create_dataloaders, tokenize_folder
from llms_from_scratch.weights.gpt2 import export_to_hub_folder

CONFIG = {
    "vocab_size": 50257,
    "context_length": 256,
    "emb_dim": 192,
    "n_heads": 6,
    "n_layers": 6,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
BATCH_SIZE = 8
TRAIN_RATIO = 0.95
PEAK_LR = 2e-3
WARMUP_STEPS = 200
DECAY_SHARE = 0.19  # of all steps of stage 1, at the end
FULL_VOCABULARY_STEPS = 100
FULL_VOCABULARY_LR = 5e-4
FULL_VOCABULARY_LOG = "train-log-full-vocabulary.jsonl"
RESULTS = (CHECKPOINT, "train-log.jsonl", FULL_VOCABULARY_LOG, "model")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default="books", help="folder of .txt files")
    parser.add_argument(
        "--steps", type=int, default=3600, help="updates of stage 1, 2048 tokens each"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    add_run_options(parser, "runs/gpt2-tiny", option="--output_dir")
    args = parser.parse_args()
    with short_errors(parser):
        options = {"resume": args.resume, "overwrite": args.overwrite, "option": "--output_dir"}
        output_dir = open_run_folder(args.output_dir, RESULTS, **options)
        device = pick_device(args.device)
        token_paths = tokenize_folder(args.data_dir, output_dir / "tokens", get_tokenizer("gpt2"))
        all_tokens = np.concatenate([np.load(path) for path in token_paths])
        used_ids, counts = np.unique(all_tokens, return_counts=True)
        compact_paths = renumber(token_paths, used_ids, output_dir / "compact")
        compact_model = train_compact(compact_paths, len(used_ids), output_dir, device, args)
        model = expand(compact_model, used_ids, counts)
        train_full(model.to(device), token_paths, output_dir, device)
        folder = export_to_hub_folder(model, CONFIG, output_dir / "model", torch.float16)
        print(f"Wrote the model to {folder}")


def renumber(token_paths: list[Path], used_ids: np.ndarray, folder: Path) -> list[Path]:
    """Copies of the token files in which the n used ids are numbered from 0 to n - 1."""
    folder.mkdir(exist_ok=True)
    for path in token_paths:
        with atomic_write(folder / path.name) as temporary, temporary.open("wb") as file:
            np.save(file, np.searchsorted(used_ids, np.load(path)).astype(np.uint16))
    return [folder / path.name for path in token_paths]


def new_model(vocab_size: int) -> GPTModelFast:
    """A GPT with one matrix for token embedding and output, initialized as GPT-2 was."""
    torch.manual_seed(123)
    model = GPTModelFast(CONFIG | {"vocab_size": vocab_size})
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            is_residual = name.endswith(("proj.weight", "layers.2.weight"))
            depth = math.sqrt(2 * CONFIG["n_layers"]) if is_residual else 1.0
            torch.nn.init.normal_(parameter, std=0.02 / depth)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    model.out_head.weight = model.tok_emb.weight
    return model


def new_optimizer(model: torch.nn.Module, lr: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)


def train_compact(token_paths, vocab_size, output_dir, device, args) -> GPTModelFast:
    """Stage 1. The learning rate rises, stays, and falls to zero in the last fifth."""
    model = new_model(vocab_size).to(device)
    optimizer = new_optimizer(model, PEAK_LR)

    def share_of_peak(step: int) -> float:
        decay_steps = DECAY_SHARE * args.steps
        return min((step + 1) / WARMUP_STEPS, 1.0, max(0.0, (args.steps - step) / decay_steps))

    train_loader, val_loader = create_dataloaders(
        token_paths, TRAIN_RATIO, BATCH_SIZE, CONFIG["context_length"], CONFIG["context_length"]
    )
    trainer = Trainer(
        model,
        optimizer,
        train_loader,
        val_loader,
        device,
        max_steps=args.steps,
        eval_freq=200,
        eval_iter=20,
        max_grad_norm=1.0,
        scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak),
        autocast_dtype=torch.bfloat16,
        config=CONFIG | {"vocab_size": vocab_size},
        settings={"steps": args.steps, "data_sha256": [sha256_of(path) for path in token_paths]},
        checkpoint_path=output_dir / CHECKPOINT,
        checkpoint_freq=500,
        log_path=output_dir / "train-log.jsonl",
    )
    if args.resume:
        trainer.resume()
    else:
        clear_run_folder(output_dir, RESULTS)
    stopped_by = trainer.run()
    if stopped_by:
        sys.exit(128 + stopped_by)
    return model


def expand(compact_model: GPTModelFast, used_ids: np.ndarray, counts: np.ndarray) -> GPTModelFast:
    """The same model over the full vocabulary; ``counts`` says how often each used id occurs."""
    tokenizer = get_tokenizer("gpt2")
    compact = compact_model.tok_emb.weight.detach().cpu()
    row_of = {
        tokenizer.decode_single_token_bytes(int(token_id)): row
        for row, token_id in enumerate(used_ids)
    }
    model = new_model(CONFIG["vocab_size"])
    with torch.no_grad():
        full = 0.02 * torch.randn(CONFIG["vocab_size"], CONFIG["emb_dim"])  # for unknown bytes
        for token_id in range(CONFIG["vocab_size"]):
            rows = spell(tokenizer.decode_single_token_bytes(token_id), row_of)
            if rows:
                full[token_id] = compact[rows].mean(dim=0)
        # Short tokens are frequent. Moved to where rare tokens are, new ones start as rare ones
        unused = np.setdiff1d(np.arange(CONFIG["vocab_size"]), used_ids)
        rare = compact[torch.from_numpy(counts.argsort()[: len(counts) // 2])]
        full[unused] += rare.mean(dim=0) - full[unused].mean(dim=0)
        model.tok_emb.weight.copy_(full)
    rest = {name: tensor.cpu() for name, tensor in compact_model.state_dict().items()}
    rest["tok_emb.weight"] = rest["out_head.weight"] = model.tok_emb.weight.detach()
    model.load_state_dict(rest)
    return model


def spell(token: bytes, row_of: dict[bytes, int]) -> list[int]:
    """Rows of the known tokens that make up ``token``, longest first from the left."""
    rows, start = [], 0
    while start < len(token):
        for end in range(len(token), start, -1):
            if token[start:end] in row_of:
                rows.append(row_of[token[start:end]])
                start = end
                break
        else:
            start += 1  # a byte that no known token has
    return rows


def train_full(model, token_paths, output_dir, device) -> None:
    """Stage 2: all 50,257 tokens compete, at a low learning rate that falls to zero."""
    optimizer = new_optimizer(model, FULL_VOCABULARY_LR)
    train_loader, val_loader = create_dataloaders(
        token_paths, TRAIN_RATIO, BATCH_SIZE, CONFIG["context_length"], CONFIG["context_length"]
    )
    torch.manual_seed(321)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(0.0, 1 - step / FULL_VOCABULARY_STEPS)
    )
    log_path = output_dir / FULL_VOCABULARY_LOG
    log_path.unlink(missing_ok=True)
    Trainer(
        model,
        optimizer,
        train_loader,
        val_loader,
        device,
        max_steps=FULL_VOCABULARY_STEPS,
        eval_freq=33,
        eval_iter=4,
        max_grad_norm=1.0,
        scheduler=scheduler,
        autocast_dtype=torch.bfloat16,
        log_path=log_path,
    ).run()


if __name__ == "__main__":
    main()
