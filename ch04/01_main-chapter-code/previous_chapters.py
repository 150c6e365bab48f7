"""What chapters 2 and 3 defined, under the import lines of the book."""

from llms_from_scratch.ch02 import GPTDatasetV1, create_dataloader_v1
from llms_from_scratch.ch03 import MultiHeadAttention

__all__ = ["GPTDatasetV1", "MultiHeadAttention", "create_dataloader_v1"]
