"""Qwen3 in the browser, as a conversation: it is shown what was said before.

    python ch05/11_qwen3/qwen3-chat-interface/qwen3-chat-interface-multiturn.py
    python ch05/11_qwen3/qwen3-chat-interface/qwen3-chat-interface-multiturn.py \\
        --model smollm2-135m-instruct

A model remembers nothing by itself: each answer begins from the whole conversation, as one text.
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
from llms_from_scratch.generate import trim_input_tensor

__all__ = [
    "build_repo_and_local",
    "get_device",
    "get_model_and_tokenizer",
    "get_qwen_config",
    "trim_input_tensor",
]

MODEL = "0.6B"  # or 1.7B, 4B, 8B, 14B, 32B
REASONING = True  # think before the answer; False: the base model
DEVICE = "auto"
MAX_NEW_TOKENS = 38912  # thoughts can be long
LOCAL_DIR = None  # where the weights are, or go; None: with the other downloads
SYSTEM = "You are a helpful assistant."
EOS_TOKEN_IDS = (151645, 151643)  # <|im_end|>, <|endoftext|>


def build_prompt_from_history(history: list[dict], add_assistant_header: bool = True) -> str:
    """The text that a Qwen3 is shown of a conversation: each turn between its marks (ChatML).

    The page shows the model the same token ids, but for one thing: there, marks within a message
    are ordinary text, so that nobody can write the turns of another.
    """
    turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in history]
    return "".join(turns) + ("<|im_start|>assistant\n" if add_assistant_header else "")


def make_page(model: str, device):
    speaker = load_qwen_speaker(model, device, REASONING, LOCAL_DIR)
    return conversation(
        "Qwen3, a conversation", speaker, system=SYSTEM, max_new_tokens=MAX_NEW_TOKENS
    )


if __name__ == "__main__":
    sys.exit(run_app(__doc__.split("\n")[0], MODEL, make_page, DEVICE))
