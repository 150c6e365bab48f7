"""Compare models in GGUF files as llama.cpp computes them with ours: logits, and 50 greedy tokens.

    pip install llama-cpp-python        # compiles llama.cpp: a quarter of an hour on one core
    python tools/check_gguf_with_llama_cpp.py gpt2-tiny smollm2-135m-instruct
    python tools/check_gguf_with_llama_cpp.py --random qwen3 gemma3 --dtype F32 Q8_0
    python tools/check_gguf_with_llama_cpp.py my-export/model.gguf

A model is exported first, in each of the given types; a ``.gguf`` file is taken as it is. Both
sides read the same file, so that the difference is that of the computing: llama.cpp looks GELU up
in a table of 16 bits; with F16, it rounds what goes into a layer to 16 bits as well, with Q8_0 to
8. How much that alone changes our own logits is measured, and twice as much is tolerated. Exits
with 1 if the largest difference of a logit is beyond that, if a prompt has other token ids, or if
other tokens are generated with F32.
"""

import argparse
import contextlib
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import numpy as np
import torch

from llms_from_scratch.app.exporting import Loaded, export_model, load_any
from llms_from_scratch.gemma3 import Gemma3Model
from llms_from_scratch.qwen3 import Qwen3Model
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.weights.gguf import GGUFFile
from llms_from_scratch.weights.pretrained import Pretrained, load_pretrained

KINDS = ("F32", "F16", "Q8_0")
TOLERANCE = 0.01  # of a logit, beside twice what rounded inputs change
PROMPTS = (
    "Every effort moves you",
    "The capital of France is",
    "Once upon a time, in 1924, there was a small café:\n\n  - its owner was",
    "def add(a, b):\n    return",
)
CONTEXT = 128
SIZES = {
    "vocab_size": 50257,
    "context_length": 256,
    "emb_dim": 64,
    "n_heads": 4,
    "n_layers": 7,  # of Gemma's, the sixth sees all
    "hidden_dim": 160,
    "n_kv_groups": 2,
    "head_dim": 32,
    "qk_norm": True,
    "rope_base": 1_000_000.0,
    "dtype": torch.float32,
}
WINDOWS = {
    "sliding_window": 16,
    "layer_types": ["full_attention" if n == 6 else "sliding_attention" for n in range(1, 8)],
    "rope_local_base": 10_000.0,
    "query_pre_attn_scalar": 32,
    "tie_embeddings": True,
}
RANDOM = {
    "qwen3": (Qwen3Model, SIZES, "qwen3"),
    "gemma3": (Gemma3Model, SIZES | WINDOWS, "gemma3_text"),
}


@dataclass(frozen=True)
class Comparison:
    """What was measured of a file: equal tokens are those before the first that differs."""

    kind: str  # of most weights
    largest: float  # difference of a logit
    rounding: float  # the same, of our model with and without rounded inputs of layers
    equal_tokens: int
    tokens: int
    equal_ids: bool


def main() -> int:
    args = parse_args()
    try:
        import llama_cpp
    except ImportError:
        sys.exit("llama.cpp is not here: pip install llama-cpp-python")
    print(f"llama-cpp-python {llama_cpp.__version__}, {args.tokens} greedy tokens a prompt\n")
    print("| model | type | largest difference of a logit | of rounding alone | equal tokens |")
    print("|---|---|---|---|---|")
    failed = []
    for name in [*args.models, *(f"random {kind}" for kind in args.random)]:
        for kind in args.dtype:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(name)
                if path.suffix != ".gguf":
                    path = export(name, kind, Path(folder))
                measured = compare(path, llama_cpp, args.tokens)
            print(row(name, measured), flush=True)
            failed += problems(name, measured, args.tolerance)
            if name.endswith(".gguf"):
                break  # it has the type that it has
    print("\n".join(["", *failed]) if failed else "\nall within the tolerance")
    return 1 if failed else 0


def export(name: str, kind: str, folder: Path) -> Path:
    """The GGUF file of a model that we load, or of a random one."""
    is_random = name.removeprefix("random ") in RANDOM and name.startswith("random ")
    loaded = random_model(name.removeprefix("random ")) if is_random else load_any(name)
    export_model(loaded, folder, "gguf", kind)
    return folder / "model.gguf"


def random_model(kind: str) -> Loaded:
    """A small model with random weights, norms included, and GPT-2's tokenizer."""
    model_class, config, model_type = RANDOM[kind]
    torch.manual_seed(123)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.add_(0.3 * noise) if "norm" in name else parameter.copy_(0.1 * noise)
    eos = frozenset({50256})
    return Loaded(Pretrained(kind, config, model, model_type, eos, "", get_tokenizer), {})


def compare(path: Path, llama_cpp, num_tokens: int) -> Comparison:
    """Read a file on both sides, and go on with each prompt, the most probable token at a time."""
    ours = load_pretrained(path)
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    theirs = llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_batch=CONTEXT, logits_all=True, verbose=False, **exact
    )
    kind = Counter(GGUFFile(path).types[name] for name in matrices(path)).most_common(1)[0][0]
    differences, rounding, equal, equal_ids = [], [0.0], 0, True
    for prompt in PROMPTS:
        ids = ours.tokenizer.encode_ordinary(prompt)
        equal_ids &= theirs.tokenize(prompt.encode(), add_bos=False, special=False) == ids
        for _ in range(num_tokens):
            one, two = our_logits(ours.model, ids), their_logits(theirs, ids)
            differences.append(np.abs(one - two).max())
            if one[-1].argmax() != two[-1].argmax():
                break
            ids = [*ids, int(one[-1].argmax())]
            equal += 1
        if kind != "F32":
            with rounded_inputs(ours.model, kind):
                rounding.append(np.abs(our_logits(ours.model, ids)[: len(one)] - one).max())
    total = num_tokens * len(PROMPTS)
    largest, alone = float(np.max(differences)), float(np.max(rounding))  # NaN if one is
    return Comparison(kind, largest, alone, equal, total, equal_ids)


def matrices(path: Path) -> list[str]:
    """The names of a file's matrices: vectors are F32 in every file."""
    return [name for name, shape in GGUFFile(path).shapes.items() if len(shape) > 1]


@contextlib.contextmanager
def rounded_inputs(model: torch.nn.Module, kind: str):
    """Round what goes into a model's linear layers, as llama.cpp does for a type of weights."""

    def hook(module, inputs):
        if kind == "F16":
            return (inputs[0].half().float(),)
        blocks = inputs[0].reshape(*inputs[0].shape[:-1], -1, 32)
        scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-12)
        return ((blocks / scale).round().mul(scale.half().float()).reshape(inputs[0].shape),)

    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def our_logits(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    """Logits of all tokens, (num_tokens, vocab_size)."""
    return model(torch.tensor([ids]))[0].numpy()


def their_logits(llama, ids: list[int]) -> np.ndarray:
    """The same by llama.cpp, which keeps what it has computed of a beginning."""
    common = 0
    for old, new in zip(llama.input_ids[: llama.n_tokens].tolist(), ids, strict=False):
        if old != new:
            break
        common += 1
    llama.n_tokens = min(common, len(ids) - 1)
    llama.eval(ids[llama.n_tokens :])
    return llama.scores[: len(ids)]


def row(name: str, measured: Comparison) -> str:
    tokens = f"{measured.equal_tokens} of {measured.tokens}"
    figures = f"{measured.largest:.2g} | {measured.rounding:.2g}"
    return f"| {name} | {measured.kind} | {figures} | {tokens} |"


def problems(name: str, measured: Comparison, tolerance: float | None = None) -> list[str]:
    """What is beyond the tolerance, one line each."""
    what, found = f"{name} {measured.kind}", []
    if tolerance is None:
        tolerance = TOLERANCE + 2 * measured.rounding
    if not measured.largest <= tolerance:  # also if it is no number
        found.append(f"{what}: a logit differs by {measured.largest:.3g}, beyond {tolerance:.3g}")
    if measured.kind == "F32" and measured.equal_tokens < measured.tokens:
        found.append(f"{what}: other tokens are generated")
    if not measured.equal_ids:
        found.append(f"{what}: llama.cpp's token ids of a prompt are others")
    return found


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="names, folders of runs, or .gguf files")
    parser.add_argument("--random", nargs="*", choices=tuple(RANDOM), default=[])
    parser.add_argument("--dtype", nargs="+", choices=KINDS, default=KINDS, help="of weights")
    parser.add_argument("--tokens", type=int, default=50, help="generated a prompt (default: 50)")
    parser.add_argument(
        "--tolerance", type=float, help=f"of a logit (default: {TOLERANCE}, and what is measured)"
    )
    args = parser.parse_args()
    if not args.models and not args.random:
        parser.error("give a model, a .gguf file, or --random")
    if not 1 <= args.tokens <= CONTEXT // 2:
        parser.error(f"--tokens must be from 1 to {CONTEXT // 2}, got {args.tokens}")
    return args


if __name__ == "__main__":
    sys.exit(main())
