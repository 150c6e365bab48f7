"""The model that you finetuned on instructions in chapter 7, in the browser.

    python ch07/01_main-chapter-code/gpt_instruction_finetuning.py   # makes one
    python ch07/06_user_interface/app.py

Each message is an instruction: the first line says what to do, lines that follow are its input.
"""

import sys

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.interface import conversation, run_app, trained_model
from llms_from_scratch.ch07 import extract_response
from llms_from_scratch.serving.speaking import load_speaker

__all__ = ["extract_response", "get_model_and_tokenizer"]

FOLDER = "runs/gpt_instruction_finetuning"
COMMAND = "python ch07/01_main-chapter-code/gpt_instruction_finetuning.py"


def get_model_and_tokenizer(folder: str = FOLDER):
    """The tokenizer, the model, and its configuration, of a folder with a finetuned model."""
    speaker = load_speaker(trained_model(folder, COMMAND, "model.pth"))
    return speaker.tokenizer, speaker.model, speaker.model.cfg


def make_page(folder: str, device):
    path = trained_model(folder, COMMAND, "model.pth")
    return conversation("Follow my instructions", load_speaker(path, device=device))


if __name__ == "__main__":
    sys.exit(run_app(__doc__.split("\n")[0], FOLDER, make_page))
