"""Pretrain the GPT of 01_opt_single_gpu.py on several GPUs, or in several processes on a CPU.

Examples:
    torchrun --nproc_per_node=4 02_opt_multi_gpu_ddp.py     # 124 million parameters, four GPUs
    torchrun --nproc_per_node=2 02_opt_multi_gpu_ddp.py --preset tiny --data the-verdict
    python 02_opt_multi_gpu_ddp.py --preset tiny --data the-verdict        # one process

A batch of --batch-size is that of each process. The device is a GPU for each process if there are
enough, else the CPU.
"""

import os

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.app.speed_scripts import (
    PADDED_VOCAB_SIZE,
    START_CONTEXT,
    out_folder,
    save_results,
    sizes_of,
    speed_parser,
    split_text,
)
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.distributed import ddp_setup
from llms_from_scratch.training_speed import (
    GPTModelForTraining,
    calc_loss_in_chunks,
    create_distributed_dataloader,
    make_optimizer,
    train_model_simple_with_timing,
    wants_compile,
)

OTHER_SETTINGS = {
    "learning_rate": 5e-4,
    "num_epochs": 50,
    "batch_size": 32,
    "weight_decay": 0.1,
    "eval_freq": 5,
    "eval_iter": 5,
    "num_workers": 4,
    "dtype": "bfloat16",
    "compile": None,  # None: on a GPU that can
}


def main(gpt_config, settings, rank, world_size, *, data="middlemarch", seed=123, out=None):
    """Train as process ``rank``; return ``(train_losses, val_losses, tokens_seen, model)``."""
    device = ddp_setup(rank, world_size)
    compiled = wants_compile(settings["compile"], device)
    texts = split_text(data)
    torch.set_float32_matmul_precision("high")  # in each process
    torch.manual_seed(seed)
    network = GPTModelForTraining(gpt_config, PADDED_VOCAB_SIZE).to(device)
    optimizer = make_optimizer(network, settings, getattr(torch, settings["dtype"]))
    if compiled:
        network.compile_blocks()
    device_ids = [device.index] if device.type == "cuda" else None
    model = DistributedDataParallel(network, device_ids, gradient_as_bucket_view=True)
    train_loader, val_loader = (
        create_distributed_dataloader(
            text,
            batch_size=settings["batch_size"],
            max_length=gpt_config["context_length"],
            stride=gpt_config["context_length"],
            rank=rank,
            world_size=world_size,
            shuffle=is_training,
            num_workers=settings["num_workers"],
            pin_memory=device.type == "cuda",
            seed=seed,
        )
        for text, is_training in zip(texts, (True, False), strict=True)
    )
    torch.manual_seed(seed + rank)  # dropout should not hit the same places in all processes
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
        sample_freq=5,
    )
    if rank == 0:
        save_results(out, network.unpadded_state_dict(), settings["num_epochs"], results)
    dist.destroy_process_group()
    return *results, network


@record  # if this process fails, torchrun's report shows its traceback
def run() -> None:
    parser = speed_parser(__doc__, "training-speed-ddp", fast=True, with_device=False)
    args = parser.parse_args()
    # torchrun runs this whole script once per process and tells each one its number
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    with short_errors(parser):
        gpt_config, settings = sizes_of(args, OTHER_SETTINGS)
        out = out_folder(args, "training-speed-ddp", is_writer=rank == 0)
        main(
            gpt_config,
            settings | {"dtype": args.dtype, "compile": args.compile},
            rank,
            world_size,
            data=args.data,
            seed=args.seed,
            out=out,
        )


if __name__ == "__main__":
    run()
