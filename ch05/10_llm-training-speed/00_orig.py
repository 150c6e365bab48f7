"""Pretrain a GPT as chapter 5 does, and measure how fast: the baseline of 01_opt_single_gpu.py.

Examples:
    python 00_orig.py                                  # 124 million parameters: wants a GPU
    python 00_orig.py --preset tiny --data the-verdict      # seconds on a CPU
"""

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch

from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.app.speed_scripts import (
    START_CONTEXT,
    out_folder,
    save_results,
    sizes_of,
    speed_parser,
    split_text,
)
from llms_from_scratch.ch02 import create_dataloader_v1
from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training_speed import train_model_simple_with_timing

OTHER_SETTINGS = {
    "learning_rate": 5e-4,
    "num_epochs": 15,
    "batch_size": 8,
    "weight_decay": 0.1,
    "eval_freq": 15,
    "eval_iter": 5,
    "num_workers": 4,
}


def main(gpt_config, settings, *, data="middlemarch", device="auto", seed=123, out=None):
    """Train; return ``(train_losses, val_losses, tokens_seen, model)``."""
    device = pick_device(device)
    texts = split_text(data)
    torch.manual_seed(seed)
    model = GPTModel(gpt_config).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    train_loader, val_loader = (
        create_dataloader_v1(
            text,
            batch_size=settings["batch_size"],
            max_length=gpt_config["context_length"],
            stride=gpt_config["context_length"],
            shuffle=is_training,
            drop_last=is_training,
            num_workers=settings["num_workers"],
        )
        for text, is_training in zip(texts, (True, False), strict=True)
    )
    results = train_model_simple_with_timing(
        model,
        train_loader,
        val_loader,
        optimizer,
        device,
        num_epochs=settings["num_epochs"],
        eval_freq=settings["eval_freq"],
        eval_iter=settings["eval_iter"],
        start_context=START_CONTEXT,
        tokenizer=get_tokenizer("gpt2"),
    )
    save_results(out, model.state_dict(), settings["num_epochs"], results)
    return *results, model


if __name__ == "__main__":
    parser = speed_parser(__doc__, "training-speed-orig", fast=False)
    args = parser.parse_args()
    with short_errors(parser):
        out = out_folder(args, "training-speed-orig")
        main(
            *sizes_of(args, OTHER_SETTINGS),
            data=args.data,
            device=args.device,
            seed=args.seed,
            out=out,
        )
