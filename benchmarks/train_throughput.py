"""Training speed of our GPT against transformers' GPT-2, taking turns in one process.

    python benchmarks/train_throughput.py                     # GPT-2 small, minutes on a CPU
    python benchmarks/train_throughput.py --emb-dim 256 --layers 4

Each step is a forward pass, a backward pass and an AdamW update. transformers uses PyTorch's fused
attention ("sdpa") and no dropout, as our models do here; its output layer is tied, ours is not, in
the architecture of the book, and a tied variant is measured too.
"""

import argparse

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
import transformers
from timing import interleaved, print_table

from llms_from_scratch.app.script_tools import pick_device
from llms_from_scratch.ch04 import GPTModel, GPTModelFast


def build(name: str, config: dict) -> torch.nn.Module:
    torch.manual_seed(123)
    if name == "transformers":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=config["vocab_size"],
                n_positions=config["context_length"],
                n_embd=config["emb_dim"],
                n_layer=config["n_layers"],
                n_head=config["n_heads"],
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                attn_implementation="sdpa",
                use_cache=False,
            )
        )
    model = GPTModel(config) if name == "GPTModel" else GPTModelFast(config)
    if name.endswith("tied"):
        model.out_head.weight = model.tok_emb.weight
    return model


def training_step(model, inputs, targets, dtype):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype != torch.float32):
            output = model(inputs)
            logits = output if isinstance(output, torch.Tensor) else output.logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()

    return step


def compare(config, shape, dtype, device, rounds) -> None:
    """Measure all models in turns and print a table; their memory is free again afterwards."""
    torch.manual_seed(0)
    inputs, targets = (torch.randint(0, 50257, shape, device=device) for _ in range(2))
    names = ["transformers", "GPTModel", "GPTModelFast", "GPTModelFast, tied"]
    steps = {
        name: training_step(build(name, config).to(device).train(), inputs, targets, dtype)
        for name in names
    }
    print(f"\n{str(dtype).removeprefix('torch.')}\n")
    seconds = interleaved(steps, rounds)
    print_table(seconds, shape[0] * shape[1], "tokens", baseline="transformers")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emb-dim", type=int, default=768, help="default: 768, GPT-2 small")
    parser.add_argument("--layers", type=int, default=12, help="default: 12")
    parser.add_argument("--batch-size", type=int, default=2, help="default: 2")
    parser.add_argument("--context-length", type=int, default=256, help="default: 256")
    parser.add_argument("--rounds", type=int, default=7, help="steps measured each (default: 7)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    args = parser.parse_args()
    device = pick_device(args.device)
    config = {
        "vocab_size": 50257,
        "context_length": args.context_length,
        "emb_dim": args.emb_dim,
        "n_heads": args.emb_dim // 64,
        "n_layers": args.layers,
        "drop_rate": 0.0,
        "qkv_bias": True,
    }
    shape = (args.batch_size, args.context_length)
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, batch {shape}, config {config}"
    )
    for dtype in (torch.float32, torch.bfloat16):
        compare(config, shape, dtype, device, args.rounds)


if __name__ == "__main__":
    main()
