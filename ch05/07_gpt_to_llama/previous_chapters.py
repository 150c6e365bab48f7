"""What chapter 5 defined and these notebooks use, under the import line of the book."""

from llms_from_scratch.ch05 import generate, text_to_token_ids, token_ids_to_text

__all__ = ["generate", "text_to_token_ids", "token_ids_to_text"]
