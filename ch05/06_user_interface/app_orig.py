"""A pretrained GPT in the browser: it goes on with what one writes.

    python ch05/06_user_interface/app_orig.py
    python ch05/06_user_interface/app_orig.py --model smollm2-135m-instruct

GPT-2, or without a network the small GPT that comes with the package.
"""

import sys

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.interface import conversation, run_app
from llms_from_scratch.serving.speaking import Speaker
from llms_from_scratch.weights.pretrained import choose_pretrained

MODEL = "gpt2-small (124M)"


def get_model_and_tokenizer(model: str = MODEL):
    """The tokenizer, the model, and its configuration."""
    loaded = choose_pretrained(model)
    return loaded.tokenizer, loaded.model, loaded.config


def make_page(model: str, device):
    loaded = choose_pretrained(model)
    loaded.model.to(device)
    return conversation("A pretrained GPT", Speaker.of(loaded))


if __name__ == "__main__":
    sys.exit(run_app(__doc__.split("\n")[0], MODEL, make_page))
