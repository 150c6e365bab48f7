"""Run the exercises of chapter 7: the chapter's script with one thing changed.

Examples:
    python exercise_experiments.py                                         # the baseline
    python exercise_experiments.py --exercise_solution mask_instructions   # exercise 7.2
    python exercise_experiments.py --exercise_solution alpaca_52k          # 7.3, hours without GPU
    python exercise_experiments.py --exercise_solution phi3_prompt         # exercise 7.1
    python exercise_experiments.py --exercise_solution lora                # exercise 7.4

Each writes to a folder of its own in runs/exercise_experiments.
"""

import argparse
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from gpt_instruction_finetuning import DEFAULT_MODEL, Settings
from gpt_instruction_finetuning import main as finetune
from matplotlib import pyplot as plt

from llms_from_scratch.app.run_folder import add_run_options, default_folder
from llms_from_scratch.app.script_tools import short_errors

EXERCISES = ("baseline", "mask_instructions", "alpaca_52k", "phi3_prompt", "lora")


def main(
    mask_instructions: bool = False,
    alpaca52k: bool = False,
    phi3_prompt: bool = False,
    lora: bool = False,
    out: str | Path = "runs/exercise_experiments",
    **options,
) -> dict:
    """Finetune with these changes; ``options`` are those of ``gpt_instruction_finetuning.main``.

    Results go to a folder in ``out`` that is called after the changes.
    """
    changes = {
        "mask-instructions": mask_instructions,
        "alpaca52k": alpaca52k,
        "phi3-prompt": phi3_prompt,
        "lora": lora,
    }
    name = "-".join(name for name, is_made in changes.items() if is_made) or "baseline"
    settings = Settings(
        prompt_style="phi3" if phi3_prompt else "alpaca",
        mask_prompt=mask_instructions,
        lora=lora,
        batch_size=4 if alpaca52k else 8,
        max_length=512 if alpaca52k else 1024,
    )
    if alpaca52k:
        options["data"] = "alpaca-52k"
    return finetune(settings, out=Path(out) / name, **options)


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--exercise_solution", "--exercise-solution", choices=EXERCISES, default="baseline"
    )
    parser.add_argument("--preset", choices=("book", "tiny"), default="book")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"default: {DEFAULT_MODEL}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--seed", type=int, default=123, help="of the random numbers (default: 123)"
    )
    folders = "runs/exercise_experiments, with --preset tiny the same with -tiny"
    add_run_options(parser, None, folders)
    return parser, parser.parse_args()


if __name__ == "__main__":
    plt.switch_backend("agg")
    parser, args = parse_args()
    out = default_folder("exercise_experiments", args.preset) if args.out is None else args.out
    with short_errors(parser):
        main(
            mask_instructions=args.exercise_solution == "mask_instructions",
            alpaca52k=args.exercise_solution == "alpaca_52k",
            phi3_prompt=args.exercise_solution == "phi3_prompt",
            lora=args.exercise_solution == "lora",
            model_name=args.model,
            device=args.device,
            seed=args.seed,
            out=out,
            preset=args.preset,
            resume=args.resume,
            overwrite=args.overwrite,
        )
