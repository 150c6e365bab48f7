"""OpenAI's GPT-2 checkpoints under the book's import line; as a script, see chapter 5's file."""

from llms_from_scratch.ch05 import download_and_load_gpt2, load_gpt2_params_from_tf_ckpt

__all__ = ["download_and_load_gpt2", "load_gpt2_params_from_tf_ckpt"]
