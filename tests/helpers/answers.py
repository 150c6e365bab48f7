"""What the questions at the end of chapters 2 to 5 and of the appendices ask for, computed."""

import math

import torch
from torch import nn

from llms_from_scratch import appendix_a, appendix_d, appendix_e, ch02, ch03, ch04, ch05
from llms_from_scratch.generate import softmax_with_temperature


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def rounded(values: torch.Tensor, digits: int = 4) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


class WordsOfOneLetter:
    """A tokenizer that makes a token of every character."""

    @staticmethod
    def encode(text: str, **options) -> list[int]:
        return [ord(letter) for letter in text]


def dataset(num_tokens: int, length: int, stride: int) -> ch02.GPTDatasetV1:
    return ch02.GPTDatasetV1("x" * num_tokens, WordsOfOneLetter, length, stride)


def num_batches(rows: int, batch_size: int) -> int:
    return len(torch.utils.data.DataLoader(range(rows), batch_size, drop_last=True))


def second_of_windows() -> list[int]:
    data = ch02.GPTDatasetV1("abcd", WordsOfOneLetter, 3, 1)
    return [10 * (token_id - ord("a") + 1) for token_id in data[0][1].tolist()]


def equal_scores_row() -> list[float]:
    attention = ch03.CausalAttention(1, 1, 4, dropout=0.0)
    zeros, values = torch.zeros(4, 1), torch.eye(4)
    return rounded(attention.attend(zeros, zeros, values)[1])


def scores_of_heads() -> tuple[int, ...]:
    queries = ch03.split_heads(torch.zeros(8, 100, 768), 12)
    return shape(queries @ queries.transpose(2, 3))


def gpt2_small(**changes):
    with torch.device("meta"):
        return ch04.GPTModel(ch04.GPT_CONFIG_124M | changes)


def num_layer_norms() -> int:
    return sum(isinstance(module, ch04.LayerNorm) for module in gpt2_small().modules())


def plain_layer_norm(values: list[float]) -> list[float]:
    norm = ch04.LayerNorm(len(values))
    norm.eps = 0.0
    return norm(torch.tensor(values)).tolist()


def generated_length() -> int:
    sizes = {"vocab_size": 9, "context_length": 8, "emb_dim": 4, "n_heads": 1, "n_layers": 1}
    model = ch04.GPTModel(ch04.GPT_CONFIG_124M | sizes)
    return ch04.generate_text_simple(model, torch.zeros(1, 4, dtype=torch.long), 5, 8).shape[1]


def loss_of(*probabilities: float) -> torch.Tensor:
    """The cross-entropy for two tokens of which the right one has these probabilities."""
    right = torch.tensor(probabilities)
    logits = torch.stack([right.log(), (1 - right).log()], dim=1)
    return nn.functional.cross_entropy(logits, torch.zeros(len(right), dtype=torch.long))


def same_probabilities() -> list[float]:
    logits = torch.tensor([2.0, 1.0, 0.0])
    divided = logits / 0.5
    assert torch.equal(
        softmax_with_temperature(divided, 1.0), softmax_with_temperature(logits, 0.5)
    )
    return divided.tolist()


def num_drawn(logits: list[float], **options) -> int:
    generator = torch.Generator().manual_seed(1)
    rows = torch.tensor([logits]).repeat(500, 1)
    return len(ch05.pick_next_token(rows, 1.0, generator=generator, **options).unique())


def flat_rows() -> tuple[int, ...]:
    return shape(torch.zeros(2, 3, 50257).flatten(0, 1))


def state_factor() -> int:
    """Numbers of a weight and of AdamW's state for it, per weight."""
    weight = nn.Parameter(torch.ones(10))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    kept = [value for value in optimizer.state[weight].values() if value.shape == weight.shape]
    return 1 + len(kept)


def derivative() -> float:
    w = torch.tensor(2.0, requires_grad=True)
    (3 * w**2).backward()
    return w.grad.item()


def after_a_step() -> float:
    parameter = nn.Parameter(torch.tensor(1.0))
    parameter.grad = torch.tensor(0.4)
    torch.optim.SGD([parameter], lr=0.5).step()
    return round(parameter.item(), 6)


def clipped(*gradient: float) -> list[float]:
    parameter = nn.Parameter(torch.zeros(len(gradient)))
    parameter.grad = torch.tensor(gradient)
    nn.utils.clip_grad_norm_([parameter], 1.0)
    return rounded(parameter.grad, 3)


def equal_entries(value: float, count: int) -> float:
    return round(torch.full((count,), value).norm().item(), 4)


def rank_without_gain(width: int) -> int:
    return next(rank for rank in range(1, width) if 2 * width * rank >= width**2)


def lora_of_gpt2_small() -> int:
    model = gpt2_small(qkv_bias=True)
    with torch.device("meta"):
        model.out_head = nn.Linear(768, 2)
        model.requires_grad_(False)
        appendix_e.replace_linear_with_lora(model, rank=16, alpha=16)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def directions(rank: int) -> int:
    torch.manual_seed(123)
    layer = appendix_e.LoRALayer(40, 60, rank, alpha=1)
    nn.init.normal_(layer.B)
    return int(torch.linalg.matrix_rank(layer(torch.randn(200, 40))))


MHA = ch03.MultiHeadAttention
LORA = appendix_e.LoRALayer
ANSWERS = {
    ("ch02", 1): lambda: ch02.split_into_tokens("Wait--what?"),
    ("ch02", 2): lambda: len(ch02.split_into_tokens("  two   spaces ")),
    ("ch02", 3): lambda: len({token: i for i, token in enumerate(range(1130))}),
    ("ch02", 4): lambda: 50_000 + 2**8 + 1,
    ("ch02", 5): lambda: len("naïve".encode()),
    ("ch02", 7): lambda: len(dataset(5145, 4, 4)),
    ("ch02", 8): lambda: len(dataset(5145, 4, 1)),
    ("ch02", 9): lambda: num_batches(1286, 8),
    ("ch02", 10): second_of_windows,
    ("ch02", 11): lambda: shape(nn.Embedding(9, 256)(torch.zeros(8, 4, dtype=torch.long))),
    ("ch02", 12): lambda: num_parameters(nn.Embedding(1024, 768)),
    ("ch03", 1): lambda: torch.softmax(torch.zeros(4), dim=0)[0].item(),
    ("ch03", 3): lambda: shape(torch.zeros(6, 3) @ torch.zeros(6, 3).T),
    ("ch03", 4): lambda: shape(ch03.SelfAttention_v2(3, 2)(torch.zeros(6, 3))),
    ("ch03", 5): lambda: 64**0.5,
    ("ch03", 6): lambda: int(ch03.CausalAttention(1, 1, 6, 0.0).mask.sum()),
    ("ch03", 7): equal_scores_row,
    ("ch03", 8): lambda: nn.Dropout(0.2)(torch.ones(100)).max().item(),
    ("ch03", 9): lambda: MHA(768, 768, 4, 0.0, 12).head_dim,
    ("ch03", 10): lambda: num_parameters(MHA(768, 768, 1024, 0.0, 12)),
    ("ch03", 11): scores_of_heads,
    ("ch04", 1): lambda: shape(gpt2_small()(torch.zeros(2, 10, dtype=torch.long, device="meta"))),
    ("ch04", 2): lambda: torch.tensor([1.0, 3.0]).var(unbiased=False).item(),
    ("ch04", 3): lambda: plain_layer_norm([1.0, 3.0]),
    ("ch04", 4): lambda: ch04.GELU()(torch.tensor(0.0)).item(),
    ("ch04", 5): lambda: num_parameters(ch04.FeedForward(ch04.GPT_CONFIG_124M)),
    ("ch04", 6): num_layer_norms,
    ("ch04", 7): lambda: MHA(1024, 1024, 4, 0.0, 16).head_dim,
    ("ch04", 8): lambda: num_parameters(gpt2_small().out_head),
    ("ch04", 9): lambda: torch.zeros(1, dtype=torch.float32).nbytes,
    ("ch04", 11): generated_length,
    ("ch05", 1): lambda: f"{loss_of(0.5).item():.3f}",
    ("ch05", 2): lambda: round(loss_of(0.5).exp().item(), 6),
    ("ch05", 3): lambda: f"{math.log(50257):.2f}",
    ("ch05", 4): flat_rows,
    ("ch05", 5): lambda: 10 * num_batches(18, 2),
    ("ch05", 8): same_probabilities,
    ("ch05", 9): lambda: num_drawn([2.0, 1.5, 1.0], top_k=1),
    ("ch05", 10): lambda: num_drawn(torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist(), top_p=0.8),
    ("ch05", 11): state_factor,
    ("ch05", 12): lambda: f"{math.exp(3.56 - 3.12):.2f}",
    ("code-part1", 1): lambda: shape(torch.tensor([[1, 2, 3], [4, 5, 6]])),
    ("code-part1", 3): lambda: (torch.tensor([[1, 2], [3, 4]]) @ torch.tensor([[1], [1]])).tolist(),
    ("code-part1", 4): lambda: torch.zeros(1000).nbytes,
    ("code-part1", 5): derivative,
    ("code-part1", 7): lambda: num_parameters(nn.Linear(50, 30)),
    ("code-part1", 8): lambda: num_parameters(appendix_a.NeuralNetwork(2, 2)),
    ("code-part1", 9): lambda: num_batches(5, 2),
    ("code-part1", 10): after_a_step,
    ("code-part1", 11): lambda: f"{loss_of(0.5).item():.3f}",
    ("appendix-D", 1): lambda: int(0.2 * 135),
    ("appendix-D", 2): lambda: appendix_d.learning_rate(5, 20, 10, 0.0, 0.01, 0.0),
    ("appendix-D", 3): lambda: round(appendix_d.learning_rate(10, 20, 0, 0.0, 1.0, 0.0), 6),
    ("appendix-D", 4): lambda: appendix_d.learning_rate(0, 20, 0, 0.0, 1.0, 0.0),
    ("appendix-D", 5): lambda: torch.tensor([3.0, 4.0]).norm().item(),
    ("appendix-D", 6): lambda: clipped(3.0, 4.0),
    ("appendix-D", 9): lambda: equal_entries(0.1, 100),
    ("appendix-E", 1): lambda: nn.Linear(768, 768, bias=False).weight.numel(),
    ("appendix-E", 2): lambda: num_parameters(LORA(768, 768, 16, 16)),
    ("appendix-E", 3): lambda: rank_without_gain(768),
    ("appendix-E", 4): lambda: LORA(8, 8, 8, 16).scaling,
    ("appendix-E", 5): lambda: shape(LORA(192, 768, 4, 1).A),
    ("appendix-E", 6): lambda: shape(LORA(192, 768, 4, 1).B),
    ("appendix-E", 9): lora_of_gpt2_small,
    ("appendix-E", 11): lambda: directions(16),
}
