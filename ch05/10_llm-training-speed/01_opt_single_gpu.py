"""Pretrain the GPT of 00_orig.py with all that makes it faster on one device.

Fused attention, norms and GELU, bfloat16 with exact weights in the optimizer, fused AdamW, a padded
vocabulary, cross entropy in chunks, compiled blocks, pinned memory. See training-speed.ipynb.

Examples:
    python 01_opt_single_gpu.py                        # 124 million parameters: wants a GPU
    python 01_opt_single_gpu.py --preset tiny --data the-verdict      # seconds on a CPU
    python 01_opt_single_gpu.py --preset tiny --data the-verdict --dtype float32    # as 00_orig.py
"""

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch

from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.app.speed_scripts import (
    PADDED_VOCAB_SIZE,
    START_CONTEXT,
    out_folder,
    save_results,
    sizes_of,
    speed_parser,
    split_text,
)
from llms_from_scratch.ch02 import create_dataloader_v1
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training_speed import (
    GPTModelForTraining,
    calc_loss_in_chunks,
    make_optimizer,
    train_model_simple_with_timing,
    wants_compile,
)

OTHER_SETTINGS = {
    "learning_rate": 5e-4,
    "num_epochs": 15,
    "batch_size": 32,
    "weight_decay": 0.1,
    "eval_freq": 10,
    "eval_iter": 5,
    "num_workers": 4,
    "dtype": "bfloat16",
    "compile": None,  # None: on a GPU that can
}


def main(gpt_config, settings, *, data="middlemarch", device="auto", seed=123, out=None):
    """Train; return ``(train_losses, val_losses, tokens_seen, model)``."""
    device = pick_device(device)
    compiled = wants_compile(settings["compile"], device)
    texts = split_text(data)
    torch.set_float32_matmul_precision("high")  # tensor cores for what stays in float32
    torch.manual_seed(seed)
    model = GPTModelForTraining(gpt_config, PADDED_VOCAB_SIZE).to(device)
    optimizer = make_optimizer(model, settings, getattr(torch, settings["dtype"]))
    if compiled:
        model.compile_blocks()
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
    for loader in (train_loader, val_loader):
        loader.pin_memory = device.type == "cuda"  # batches are copied while the GPU computes
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
        calc_loss=calc_loss_in_chunks,
    )
    save_results(out, model.unpadded_state_dict(), settings["num_epochs"], results)
    return *results, model


if __name__ == "__main__":
    parser = speed_parser(__doc__, "training-speed-single", fast=True)
    args = parser.parse_args()
    with short_errors(parser):
        gpt_config, settings = sizes_of(args, OTHER_SETTINGS)
        out = out_folder(args, "training-speed-single")
        main(
            gpt_config,
            settings | {"dtype": args.dtype, "compile": args.compile},
            data=args.data,
            device=args.device,
            seed=args.seed,
            out=out,
        )
