"""Qwen3 in the browser, one question at a time: it thinks, folded, then answers.

    python ch05/11_qwen3/qwen3-chat-interface/qwen3-chat-interface.py
    python ch05/11_qwen3/qwen3-chat-interface/qwen3-chat-interface.py --model smollm2-135m-instruct

Each question is answered by itself: ask "And what did I say before?", and it does not know.
"""

import sys

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from llms_from_scratch.app.interface import conversation, run_app
from llms_from_scratch.app.qwen3_chat import (
    build_repo_and_local,
    get_device,
    get_model_and_tokenizer,
    get_qwen_config,
    load_qwen_speaker,
)

__all__ = ["build_repo_and_local", "get_device", "get_model_and_tokenizer", "get_qwen_config"]

MODEL = "0.6B"  # or 1.7B, 4B, 8B, 14B, 32B
REASONING = True  # think before the answer; False: the base model, which goes on with a text
DEVICE = "auto"
MAX_NEW_TOKENS = 38912  # thoughts can be long
LOCAL_DIR = None  # where the weights are, or go; None: with the other downloads


def make_page(model: str, device):
    speaker = load_qwen_speaker(model, device, REASONING, LOCAL_DIR)
    return conversation(
        "Qwen3, one question at a time", speaker, remembers=False, max_new_tokens=MAX_NEW_TOKENS
    )


if __name__ == "__main__":
    sys.exit(run_app(__doc__.split("\n")[0], MODEL, make_page, DEVICE))
