"""What chapters 2 to 6 defined, under the import lines of the book."""

from llms_from_scratch.ch02 import GPTDatasetV1, create_dataloader_v1
from llms_from_scratch.ch03 import MultiHeadAttention
from llms_from_scratch.ch04 import (
    GELU,
    FeedForward,
    GPTModel,
    LayerNorm,
    TransformerBlock,
    generate_text_simple,
)
from llms_from_scratch.ch05 import (
    assign,
    load_weights_into_gpt,
    text_to_token_ids,
    token_ids_to_text,
)
from llms_from_scratch.ch06 import (
    SpamDataset,
    calc_accuracy_loader,
    calc_loss_batch,
    calc_loss_loader,
    create_balanced_dataset,
    download_and_unzip_spam_data,
    evaluate_model,
    plot_values,
    random_split,
    train_classifier_simple,
)

__all__ = [
    "GELU",
    "FeedForward",
    "GPTDatasetV1",
    "GPTModel",
    "LayerNorm",
    "MultiHeadAttention",
    "SpamDataset",
    "TransformerBlock",
    "assign",
    "calc_accuracy_loader",
    "calc_loss_batch",
    "calc_loss_loader",
    "create_balanced_dataset",
    "create_dataloader_v1",
    "download_and_unzip_spam_data",
    "evaluate_model",
    "generate_text_simple",
    "load_weights_into_gpt",
    "plot_values",
    "random_split",
    "text_to_token_ids",
    "token_ids_to_text",
    "train_classifier_simple",
]
