"""Your spam classifier of chapter 6 in the browser: a label and its probability for each message.

python ch06/01_main-chapter-code/gpt_class_finetune.py           # makes one
python ch06/04_user_interface/app.py
"""

import contextlib
import sys

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.interface import label_page, run_app, trained_model
from llms_from_scratch.ch06 import (
    classify_with_probability,
    load_classifier,
    load_classifier_tokenizer,
)

FOLDER = "runs/gpt_class_finetune"
COMMAND = "python ch06/01_main-chapter-code/gpt_class_finetune.py"


def get_model_and_tokenizer(folder: str = FOLDER):
    """The tokenizer and the model of a folder with a classifier."""
    path = trained_model(folder, COMMAND, "review_classifier.safetensors")
    return load_classifier_tokenizer(path), load_classifier(path)[0]


def make_page(folder: str, device):
    path = trained_model(folder, COMMAND, "review_classifier.safetensors")
    tokenizer = load_classifier_tokenizer(path)
    model, settings = load_classifier(path)
    model.to(device)

    def classify(message: str) -> tuple[str, float]:
        length, pad_id = settings["max_length"], settings.get("pad_token_id")
        return classify_with_probability(message, model, tokenizer, device, length, pad_id)

    return contextlib.nullcontext(label_page("Spam or not?", classify))


if __name__ == "__main__":
    sys.exit(run_app(__doc__.split("\n")[0], FOLDER, make_page))
