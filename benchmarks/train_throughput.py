"""Training speed of our GPT against transformers' GPT-2 and a loop in the way of nanoGPT.

    python benchmarks/train_throughput.py                     # GPT-2 small, minutes on a CPU
    python benchmarks/train_throughput.py --emb-dim 256 --layers 4
    python benchmarks/train_throughput.py --compile           # all models too, compiled

Each step is a forward pass, a backward pass and an AdamW update. All models have the same weights
at the start (GPT-2's shape, output layer tied to the embedding, no dropout) and see the same
batches; candidates take turns, step by step. The loss after the last step proves that all have
trained the same model. Beside the time on the clock stands the CPU time of all threads, which
other programs disturb less.
"""

import argparse
import os
import statistics
import time

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait use no CPU time

import torch
import torch.nn.functional as F
import transformers
from timing import synchronize
from torch import nn

from llms_from_scratch.app.script_tools import pick_device
from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.training_speed import (
    AdamWWithMasters,
    GPTModelForTraining,
    use_matmul_attention,
    why_no_compile,
)

VOCAB_SIZE, PADDED_VOCAB_SIZE = 50257, 50304


# --- The peers ---


class PeerBlock(nn.Module):
    """Attention and feed-forward as a compact GPT-2 has them: one projection for q, k and v."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.attn_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.fc_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, d = x.shape
        parts = self.attn(self.ln_1(x)).split(d, dim=2)
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_out(y.transpose(1, 2).contiguous().view(b, t, d))
        return x + self.fc_out(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class Peer(nn.Module):
    """A GPT-2 in the way of nanoGPT: padded vocabulary, tied output layer, logits in one piece."""

    def __init__(self, config: dict):
        super().__init__()
        width = config["emb_dim"]
        self.wte = nn.Embedding(PADDED_VOCAB_SIZE, width)
        self.wpe = nn.Embedding(config["context_length"], width)
        blocks = (PeerBlock(width, config["n_heads"]) for _ in range(config["n_layers"]))
        self.h = nn.ModuleList(blocks)
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, PADDED_VOCAB_SIZE, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def transformers_model(config: dict) -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB_SIZE,
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


# --- The same weights for all ---


def start_weights(config: dict) -> dict[str, torch.Tensor]:
    """Weights by the names of our fast GPT, drawn as GPT-2's are."""
    model = GPTModelForTraining(config)
    generator = torch.Generator().manual_seed(123)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    state = model.state_dict()
    state["out_head.weight"] = state["tok_emb.weight"]  # tied
    return state


PEER_NAMES = {
    "tok_emb": "wte",
    "pos_emb": "wpe",
    "final_norm": "ln_f",
    "out_head": "lm_head",
    "trf_blocks": "h",
    "att.qkv": "attn",
    "att.proj": "attn_out",
    "ff.layers.0": "fc",
    "ff.layers.2": "fc_out",
    "norm1": "ln_1",
    "norm2": "ln_2",
}
TRANSFORMERS_NAMES = PEER_NAMES | {
    "att.qkv": "attn.c_attn",
    "att.proj": "attn.c_proj",
    "ff.layers.0": "mlp.c_fc",
    "ff.layers.2": "mlp.c_proj",
}


def renamed(state: dict, names: dict[str, str]) -> dict:
    result = {}
    for name, tensor in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        result[name] = tensor
    return result


def load(model: nn.Module, state: dict) -> None:
    """Give a model the weights; its output layer is tied already, or has no counterpart."""
    if isinstance(model, GPTModelForTraining):
        model.out_head.weight = model.tok_emb.weight
        model.load_state_dict(state)
    elif isinstance(model, Peer):
        state = renamed(state, PEER_NAMES)
        for name in ("wte.weight", "lm_head.weight"):
            state[name] = F.pad(state[name], (0, 0, 0, PADDED_VOCAB_SIZE - VOCAB_SIZE))
        model.load_state_dict(state)
    elif isinstance(model, GPTModel):
        model.out_head.weight = model.tok_emb.weight
        model.load_state_dict(split_qkv(state), strict=False)  # masks are not in the state
    else:
        state = renamed(state, TRANSFORMERS_NAMES)
        is_transposed = {n for n in state if ".c_" in n and n.endswith("weight")}
        state = {n: t.T if n in is_transposed else t for n, t in state.items()}
        model.transformer.load_state_dict(
            {n: t for n, t in state.items() if not n.startswith("lm_head")}
        )


def split_qkv(state: dict) -> dict:
    """Names and shapes of chapter 4's model, which has three projections instead of a joint one."""
    result = {}
    for name, tensor in state.items():
        if ".att.qkv." in name:
            for part, projection in zip(tensor.chunk(3), ("query", "key", "value"), strict=True):
                result[name.replace("qkv", f"W_{projection}")] = part
        else:
            name = name.replace("att.proj", "att.out_proj")
            for norm in ("norm1", "norm2", "final_norm"):
                name = name.replace(f"{norm}.weight", f"{norm}.scale")
                name = name.replace(f"{norm}.bias", f"{norm}.shift")
            result[name] = tensor
    return result


# --- One training step of each ---


def candidates(config: dict, dtype: torch.dtype, device: torch.device, compiled: bool) -> dict:
    """Name: a function that makes the model, and the options of its step."""
    ours = {"chunked": True, "masters": dtype != torch.float32}
    found = {
        "transformers": (transformers_model, {"fused": False}),
        "transformers, fused AdamW": (transformers_model, {}),
        "nanoGPT's way": (Peer, {"fused": device.type == "cuda"}),
        "nanoGPT's way, fused AdamW": (Peer, {}),
        "GPTModel of chapter 4": (GPTModel, {"fused": False}),
        "ours": (GPTModelForTraining, ours),
    }
    if device.type == "cpu" and dtype != torch.float32:
        found["ours, attention from products"] = (with_matmul_attention, ours)
    if compiled:
        for name in ("transformers, fused AdamW", "nanoGPT's way, fused AdamW", "ours"):
            make, options = found[name]
            found[f"{name}, compiled"] = (make, options | {"compiled": True})
    return found


def with_matmul_attention(config: dict) -> nn.Module:
    model = GPTModelForTraining(config)
    use_matmul_attention(model)
    return model


def training_step(
    model, batches, dtype, *, fused=True, chunked=False, masters=False, compiled=False
):
    """A function without arguments that trains on the next batch and returns the loss."""
    device = batches[0][0].device
    if masters:
        optimizer = AdamWWithMasters(model, dtype, lr=1e-4, fused=fused)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
    if compiled:
        blocks = getattr(model, "trf_blocks", None) or getattr(model, "h", None)
        for block in blocks or model.transformer.h:
            block.compile()
    number = -1

    def step() -> float:
        nonlocal number
        number += 1
        inputs, targets = batches[number % len(batches)]
        optimizer.zero_grad()
        autocast = dtype != torch.float32 and not masters
        with torch.autocast(device.type, dtype=dtype, enabled=autocast):
            if chunked:
                loss = model(inputs, targets)
            else:
                output = model(inputs)
                logits = output if isinstance(output, torch.Tensor) else output.logits
                loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


# --- Turns, and a table ---


def compare(config, shape, dtype, device, args) -> None:
    """Measure all models in turns and print a table; their memory is free again afterwards."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCAB_SIZE, (4, 2, *shape), generator=generator).to(device)
    batches = [(inputs, targets) for inputs, targets in ids]
    weights, steps = start_weights(config), {}
    for name, (make, options) in candidates(config, dtype, device, args.compile).items():
        if args.rows and name not in args.rows:
            continue
        model = make(config)
        load(model, weights)
        steps[name] = training_step(model.to(device).train(), batches, dtype, **options)
    wall, cpu, losses = measure(steps, args.rounds)
    print_results(wall, cpu, losses, shape[0] * shape[1], str(dtype).removeprefix("torch."))


def measure(steps: dict, rounds: int) -> tuple[dict, dict, dict]:
    """Seconds and CPU seconds of each step, and the last loss; two rounds are a warm-up."""
    wall, cpu, losses = {name: [] for name in steps}, {name: [] for name in steps}, {}
    for round_number in range(rounds + 2):
        for name, step in steps.items():
            synchronize()
            started, used = time.perf_counter(), time.process_time()
            losses[name] = step()
            synchronize()
            if round_number >= 2:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
    return wall, cpu, losses


def print_results(wall: dict, cpu: dict, losses: dict, tokens: int, title: str) -> None:
    """A Markdown table; ratios to the best peer are medians over the rounds."""
    peers = [name for name in wall if name.startswith(("transformers", "nanoGPT"))]
    if not peers:
        raise SystemExit("--rows leaves no peer to compare with")
    best = min(peers, key=lambda name: statistics.median(wall[name]))
    best_cpu = min(peers, key=lambda name: statistics.median(cpu[name]))
    print(f"\n| {title} | tokens/s | ratio to {best} | ratio of CPU time to {best_cpu} | loss |")
    print("|---|---|---|---|---|", flush=True)
    for name, seconds in wall.items():
        ratios = (
            statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in ((seconds, wall[best]), (cpu[name], cpu[best_cpu]))
        )
        speed = tokens / statistics.median(seconds)
        clock_ratio, cpu_ratio = ratios
        row = f"{speed:,.0f} | {clock_ratio:.2f} | {cpu_ratio:.2f} | {losses[name]:.4f}"
        print(f"| {name} | {row} |", flush=True)


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
    parser.add_argument("--compile", action="store_true", help="measure compiled blocks too")
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="NAME",
        help="these rows of the table: all need 15 GB of memory (default: all)",
    )
    args = parser.parse_args()
    device = pick_device(args.device)
    if args.compile and (reason := why_no_compile(device)):
        parser.error(f"--compile: {reason}")
    config = {
        "vocab_size": VOCAB_SIZE,
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
        compare(config, shape, dtype, device, args)


if __name__ == "__main__":
    main()
