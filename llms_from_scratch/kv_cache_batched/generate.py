"""Generation for a batch of prompts: the functions of ``kv_cache.generate``, which take any batch.

For prompts of unequal length, pad on the left and say how long they are:
``idx, lengths = left_pad(prompts)``, then ``generate_text_simple(..., lengths=lengths)``.
"""

from llms_from_scratch.kv_cache.generate import (
    generate_text_simple,
    generate_text_simple_stream,
    trim_input_tensor,
)

__all__ = ["generate_text_simple", "generate_text_simple_stream", "trim_input_tensor"]
