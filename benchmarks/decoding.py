"""Generation with a modern model, ours and transformers', taking turns: SmolLM2's shape by default.

    python benchmarks/decoding.py                     # 135 M parameters, a few minutes on a CPU
    python benchmarks/decoding.py --layers 4 --new-tokens 20 --rounds 2
    python benchmarks/decoding.py --moe               # one mixture of experts, 64 tokens and 1

Both have the same random weights and choose the most probable token. Batch 1 must read all weights
for each token; the limit is how fast they can be read, measured in the same turns by summing each
of them. Time to the first token is that of a prompt of 1,000 tokens and one step.
"""

import argparse
import statistics

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
import transformers
from timing import interleaved, print_results

from llms_from_scratch.app.script_tools import pick_device
from llms_from_scratch.blocks.feed_forward import MoEFeedForward
from llms_from_scratch.generate import generate
from llms_from_scratch.llama3 import SMOLLM2_CONFIG_135M
from llms_from_scratch.qwen3 import NAMES as QWEN_NAMES
from llms_from_scratch.qwen3 import split_experts
from llms_from_scratch.weights.architectures import model_from_config
from llms_from_scratch.weights.mapping import their_name
from llms_from_scratch.weights.sources import from_dict

BASELINE = "transformers"


def build(cfg: dict, device: torch.device) -> dict[str, torch.nn.Module]:
    """The same model twice; both share the memory of the weights."""
    torch.manual_seed(123)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=cfg["vocab_size"],
            hidden_size=cfg["emb_dim"],
            intermediate_size=cfg["hidden_dim"],
            num_hidden_layers=cfg["n_layers"],
            num_attention_heads=cfg["n_heads"],
            num_key_value_heads=cfg["n_kv_groups"],
            max_position_embeddings=cfg["context_length"],
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": cfg["rope_base"]},
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    theirs = theirs.to(device, cfg["dtype"]).eval()
    ours = model_from_config("llama", cfg, from_dict(theirs.state_dict(), BASELINE))
    return {BASELINE: theirs, "ours": ours.to(device)}


def generators(models: dict, prompt: torch.Tensor, new_tokens: int) -> dict:
    """For each model, a function without arguments that returns the new tokens."""
    return {
        BASELINE: lambda: models[BASELINE].generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )[:, prompt.shape[1] :],
        "ours": lambda: torch.tensor(generate(models["ours"], prompt.tolist(), new_tokens)),
    }


def compare_generation(models: dict, args: argparse.Namespace, device: torch.device) -> None:
    vocab_size = models["ours"].cfg["vocab_size"]
    weights = [p.detach() for p in models["ours"].parameters()]
    for batch_size in args.batch_sizes:
        prompt = torch.randint(0, vocab_size, (batch_size, args.prompt_tokens), device=device)
        variants = generators(models, prompt, args.new_tokens)
        candidates = variants | {"limit": lambda: [w.sum() for _ in range(20) for w in weights]}
        seconds = interleaved(candidates, args.rounds)
        limit = statistics.median(seconds.pop("limit")) / 20 / batch_size
        print(f"\nBatch of {batch_size}, {args.prompt_tokens} -> {args.new_tokens} tokens:\n")
        print_results(seconds, batch_size * args.new_tokens, limit, BASELINE)
        same = (variants["ours"]().to(device) == variants[BASELINE]()).long().cumprod(1).sum(1)
        print(f"\nThe first {int(same.min())} of {args.new_tokens} tokens are equal in each row.")

    prompt = torch.randint(0, vocab_size, (1, args.long_prompt), device=device)
    seconds = interleaved(generators(models, prompt, 1), args.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\nSeconds to the first token after {args.long_prompt} tokens: ", end="")
    print(", ".join(f"{name} {value:.3f}" for name, value in medians.items()), end="")
    print(f"; ratio {medians[BASELINE] / medians['ours']:.2f}")


def compare_experts(args: argparse.Namespace, device: torch.device) -> None:
    """One mixture-of-experts layer, Qwen3's kind, for many tokens and for one."""
    config = transformers.Qwen3MoeConfig(
        hidden_size=512,
        moe_intermediate_size=384,
        num_local_experts=64,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=64,
    )
    torch.manual_seed(123)
    theirs = transformers.Qwen3MoeForCausalLM(config).to(device).eval()
    cfg = {"emb_dim": 512, "num_experts": 64, "num_experts_per_tok": 8, "moe_hidden_dim": 384}
    ours = MoEFeedForward(cfg).to(device)
    source = split_experts(from_dict(theirs.state_dict(), BASELINE))
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(source.read(their_name(f"trf_blocks.0.ff.{name}", QWEN_NAMES)))
    layers = {BASELINE: theirs.model.layers[0].mlp, "ours": ours}
    for tokens in (512, 64, 1):
        x = torch.randn(1, tokens, 512, device=device)
        with torch.no_grad():
            difference = (layers["ours"](x) - layers[BASELINE](x)).abs().max().item()
            candidates = {
                name: lambda layer=layer, x=x: [layer(x) for _ in range(20)]
                for name, layer in layers.items()
            }
            seconds = interleaved(candidates, args.rounds)
        medians = {name: statistics.median(v) / 20 * 1e3 for name, v in seconds.items()}
        print(
            f"| {tokens} tokens | {medians[BASELINE]:.2f} | {medians['ours']:.2f} | "
            f"{medians[BASELINE] / medians['ours']:.2f} | {difference:.0e} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=30, help="default: 30, SmolLM2-135M")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="default: 32")
    parser.add_argument("--new-tokens", type=int, default=200, help="default: 200")
    parser.add_argument("--long-prompt", type=int, default=1000, help="default: 1000")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="default: 1 8")
    parser.add_argument("--rounds", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--moe", action="store_true", help="compare a mixture of experts instead")
    args = parser.parse_args()
    device = pick_device(args.device)
    transformers.logging.set_verbosity_error()
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, float32"
    )
    if args.moe:
        print("\n| | transformers, ms | ours, ms | ratio | largest difference |")
        print("|---|---|---|---|---|")
        compare_experts(args, device)
        return
    cfg = SMOLLM2_CONFIG_135M | {"n_layers": args.layers}
    compare_generation(build(cfg, device), args, device)


if __name__ == "__main__":
    main()
