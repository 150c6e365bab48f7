"""Generate text with a pretrained GPT, as in chapter 5.

Examples:
    python gpt_generate.py --prompt "Every effort moves you"
    python gpt_generate.py --model gpt2-tiny --temperature 0     # bundled, needs no download
    python gpt_generate.py --model path/to/folder --prompt "It was"
    python gpt_generate.py --model runs/gpt_train/checkpoint.pth    # of a run that was stopped

A folder holds config.json and model.safetensors, as on the Hugging Face hub, or a checkpoint of
OpenAI's.
"""

import argparse
import sys
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.run_folder import CHECKPOINT
from llms_from_scratch.app.script_tools import pick_device, short_errors
from llms_from_scratch.ch05 import (
    assign,
    choose_pretrained,
    download_and_load_gpt2,
    generate,
    load_gpt2_params_from_tf_ckpt,
    load_pretrained,
    load_weights_into_gpt,
    text_to_token_ids,
    token_ids_to_text,
)
from llms_from_scratch.generate import Sampling, stream_text
from llms_from_scratch.tokenizer import get_tokenizer
from llms_from_scratch.training.checkpoint import load_checkpoint, read_checkpoint
from llms_from_scratch.weights.pretrained import Pretrained
from previous_chapters import GPTModel

__all__ = [
    "assign",
    "download_and_load_gpt2",
    "generate",
    "load_gpt2_params_from_tf_ckpt",
    "load_weights_into_gpt",
    "main",
    "text_to_token_ids",
    "token_ids_to_text",
]


def main(
    gpt_config: dict | None,
    input_prompt: str,
    model_size: str = "gpt2-small (124M)",
    device: str = "auto",
    *,
    max_new_tokens: int = 25,
    temperature: float = 1.0,
    top_k: int | None = 50,
    seed: int = 123,
    exact_model: bool = False,
) -> None:
    """Print the prompt and, token by token, what the model makes of it.

    The model brings its configuration; a ``gpt_config`` that contradicts it is a ``ValueError``. If
    the model cannot be downloaded, the bundled one is used, unless ``exact_model`` is set.
    """
    if not input_prompt:
        raise ValueError("the prompt is empty: give at least one character to continue")
    sampling = Sampling(temperature, top_k)  # refuses what makes no sense before anything is loaded
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must not be negative, got {max_new_tokens}")
    device = pick_device(device)
    pretrained = load_model(model_size, exact_model)
    if gpt_config is not None and pretrained.name == model_size:
        for key in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
            if gpt_config[key] != pretrained.config[key]:
                raise ValueError(
                    f"{model_size} has {key} {pretrained.config[key]}, not {gpt_config[key]}"
                )
    tokenizer = pretrained.tokenizer
    if tokenizer is None:
        raise ValueError(f"{model_size} came without a tokenizer: put its tokenizer.json there")
    pieces = stream_text(
        pretrained.model.to(device),
        tokenizer,
        text_to_token_ids(input_prompt, tokenizer)[0].tolist(),
        max_new_tokens,
        sampling,
        stop_ids=pretrained.stop_ids if pretrained.chat else (),
        seed=seed,
    )
    print("Output text:")
    print(input_prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def load_model(model_size: str, exact_model: bool) -> Pretrained:
    """A pretrained model, or the one in the checkpoint of a run that was stopped."""
    path = Path(model_size)
    if path.is_dir() and not (path / "model.pth").exists() and (path / CHECKPOINT).is_file():
        path = path / CHECKPOINT
    if path.name == CHECKPOINT and path.is_file():
        return from_checkpoint(path)
    return (load_pretrained if exact_model else choose_pretrained)(model_size)


def from_checkpoint(path: Path) -> Pretrained:
    """The GPT that a run of ``gpt_train.py`` has trained so far; ``ValueError`` for another one."""
    config = read_checkpoint(path)["config"]
    if not config:
        raise ValueError(f"{path} is of a finetuning: finish it with --resume, then use its folder")
    model = GPTModel(config)
    load_checkpoint(path, model)
    print(f"Model: {path}, of a run that may not be finished")
    tokenizer = get_tokenizer("gpt2") if config["vocab_size"] == 50257 else None
    return Pretrained(str(path), config, model.eval(), make_tokenizer=lambda: tokenizer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", default="Every effort moves you", help="text to continue")
    parser.add_argument(
        "--model",
        default="gpt2-small (124M)",
        help='"gpt2-small (124M)", "gpt2-medium (355M)", "gpt2-large (774M)", "gpt2-xl (1558M)", '
        '"gpt2-tiny", "smollm2-135m-instruct", a folder or file, or a model of the hub, OWNER/NAME '
        "(default: gpt2-small, else the bundled gpt2-tiny)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--max-new-tokens", type=int, default=25, help="default: 25")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: greedy (default: 1)")
    parser.add_argument("--top-k", type=int, default=50, help="0: all tokens (default: 50)")
    parser.add_argument("--seed", type=int, default=123, help="of the random draws (default: 123)")
    args = parser.parse_args()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a console may lack some characters
    with short_errors(parser):
        main(
            None,
            args.prompt,
            args.model,
            args.device,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            seed=args.seed,
            exact_model=args.model != parser.get_default("model"),
        )
