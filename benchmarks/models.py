"""Parameters, memory and speed of the models of this repository, on your machine.

    python benchmarks/models.py                        # a Markdown table; minutes
    python benchmarks/models.py --only "Qwen3 0.6B"

Speed is that of greedy decoding with a key-value cache, one text at a time, after a prompt of 32
tokens. The weights are random: numbers of any value take the same time. A model that does not fit
into the free memory is not run.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import psutil
import torch
from timing import synchronize
from torch import nn

from llms_from_scratch.app.script_tools import pick_device
from llms_from_scratch.blocks.sizes import count_unique_parameters
from llms_from_scratch.ch04 import BASE_CONFIG, GPTModel, model_configs
from llms_from_scratch.gemma3 import GEMMA3_CONFIG_270M, Gemma3Model
from llms_from_scratch.gemma4 import GEMMA4_CONFIG_E2B, Gemma4DenseModel
from llms_from_scratch.generate import generate
from llms_from_scratch.llama3 import LLAMA32_CONFIG_1B, SMOLLM2_CONFIG_135M, Llama3Model
from llms_from_scratch.olmo3 import OLMO3_CONFIG_7B, Olmo3Model
from llms_from_scratch.qwen3 import QWEN_CONFIG_06_B, Qwen3Model
from llms_from_scratch.qwen3_5 import QWEN3_5_CONFIG, Qwen3_5Model
from llms_from_scratch.tiny_aya import TINY_AYA_CONFIG, TinyAyaModel

PROMPT_TOKENS = 32
GPT2_TINY = {"context_length": 256, "emb_dim": 192, "n_layers": 6, "n_heads": 6}


def gpt2(changes: dict) -> Callable[[torch.dtype], nn.Module]:
    cfg = BASE_CONFIG | {"drop_rate": 0.0} | changes

    def make(dtype: torch.dtype) -> nn.Module:
        model = GPTModel(cfg).to(dtype).eval()
        model.out_head.weight = model.tok_emb.weight  # as in the published weights
        return model

    return make


def modern(model_class: type[nn.Module], cfg: dict) -> Callable[[torch.dtype], nn.Module]:
    tied = {} if model_class is Olmo3Model else {"tie_embeddings": True}  # as in published weights
    return lambda dtype: model_class(cfg | tied | {"dtype": dtype}).eval()


MODELS = {
    "gpt2-tiny (bundled)": gpt2(GPT2_TINY),
    "GPT-2 small": gpt2(model_configs["gpt2-small (124M)"]),
    "GPT-2 medium": gpt2(model_configs["gpt2-medium (355M)"]),
    "SmolLM2 135M": modern(Llama3Model, SMOLLM2_CONFIG_135M),
    "Gemma 3 270M": modern(Gemma3Model, GEMMA3_CONFIG_270M),
    "Qwen3 0.6B": modern(Qwen3Model, QWEN_CONFIG_06_B),
    "Qwen3.5 0.8B": modern(Qwen3_5Model, QWEN3_5_CONFIG),
    "Llama 3.2 1B": modern(Llama3Model, LLAMA32_CONFIG_1B),
    "Tiny Aya 3.35B": modern(TinyAyaModel, TINY_AYA_CONFIG),
    "Gemma 4 E2B": modern(Gemma4DenseModel, GEMMA4_CONFIG_E2B),
    "Olmo 3 7B": modern(Olmo3Model, OLMO3_CONFIG_7B),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME", help="one of the models (default: all)")
    parser.add_argument("--new-tokens", type=int, default=32, help="of a text (default: 32)")
    parser.add_argument("--rounds", type=int, default=3, help="texts; medians count (default: 3)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    args = parser.parse_args()
    if args.only and args.only not in MODELS:
        parser.error(f"--only {args.only}: known are {', '.join(MODELS)}")
    device, dtype = pick_device(args.device), getattr(torch, args.dtype)
    print(f"| model | parameters | weights in bfloat16 | tokens/s in {args.dtype} |")
    print("|---|---|---|---|", flush=True)
    for name, make in MODELS.items():
        if args.only in (None, name):
            with torch.device("meta"):
                parameters = count_unique_parameters(make(dtype))
            speed = "too large for this machine"
            if parameters * dtype.itemsize < 0.8 * free_memory(device):
                with torch.device(device):
                    model = make(dtype)
                speed = f"{tokens_per_second(model, args.new_tokens, args.rounds):.1f}"
                del model
            size = f"{2 * parameters / 1e9:.2f} GB"
            print(f"| {name} | {parameters / 1e6:,.0f} M | {size} | {speed} |", flush=True)


def free_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def tokens_per_second(model: nn.Module, new_tokens: int, rounds: int) -> float:
    """Median of the speed after the prompt: what a prompt costs is measured and taken away."""
    prompt = [list(range(PROMPT_TOKENS))]
    seconds = {1: [], new_tokens + 1: []}
    for round_number in range(rounds + 1):
        for count, kept in seconds.items():
            synchronize()
            started = time.perf_counter()
            generate(model, prompt, count)
            synchronize()
            if round_number > 0:
                kept.append(time.perf_counter() - started)
    first, all_tokens = (statistics.median(kept) for kept in seconds.values())
    return new_tokens / (all_tokens - first)


if __name__ == "__main__":
    main()
