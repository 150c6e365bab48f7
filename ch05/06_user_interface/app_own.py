"""The GPT that you trained in chapter 5, in the browser: it goes on with what one writes.

python ch05/01_main-chapter-code/gpt_train.py --preset tiny      # makes one, in a minute
python ch05/06_user_interface/app_own.py --model runs/gpt_train-tiny
"""

import sys

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.interface import conversation, run_app, trained_model
from llms_from_scratch.serving.speaking import load_speaker

FOLDER = "runs/gpt_train"
COMMAND = "python ch05/01_main-chapter-code/gpt_train.py"


def get_model_and_tokenizer(folder: str = FOLDER):
    """The tokenizer, the model, and its configuration, of a folder that ``gpt_train.py`` wrote."""
    speaker = load_speaker(trained_model(folder, COMMAND, "model.pth"))
    return speaker.tokenizer, speaker.model, speaker.model.cfg


def make_page(folder: str, device):
    path = trained_model(folder, COMMAND, "model.pth")
    return conversation("Your own GPT", load_speaker(path, device=device))


if __name__ == "__main__":
    sys.exit(run_app(__doc__.split("\n")[0], FOLDER, make_page))
