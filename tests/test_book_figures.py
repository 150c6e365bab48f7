"""The book's figures, computed here and compared within a stated tolerance.

Readers compare what they see with the page. Each entry below is one figure of the book: a name, the
printed value, and how far a result may lie from it. Values hold on a CPU under seed 123.
"""

import re

import book_figures
import pytest
import torch

from llms_from_scratch import appendix_d, appendix_e, ch02, ch03, ch04, ch05, ch07
from llms_from_scratch.data import DownloadError, fetch
from llms_from_scratch.tokenizer import get_tokenizer

DIGITS_4 = 1.01e-4  # the book prints four decimals
EXACT = 0

FIGURES = []


def figure(name, value, tolerance=EXACT, real_data=False):
    """Register the function below as the computation of one figure of the book."""

    def register(compute):
        marks = [pytest.mark.real_data] if real_data else []
        FIGURES.append(pytest.param(compute, value, tolerance, id=name, marks=marks))
        return compute

    return register


# --- Chapter 2 ---

INPUTS_8_4 = [
    [40, 367, 2885, 1464],
    [1807, 3619, 402, 271],
    [10899, 2138, 257, 7026],
    [15632, 438, 2016, 257],
    [922, 5891, 1576, 438],
    [568, 340, 373, 645],
    [1049, 5975, 284, 502],
    [284, 3285, 326, 11],
]


def verdict_vocabulary(text, *extra):
    words = [*sorted(set(ch02.split_into_tokens(text))), *extra]
    return {word: i for i, word in enumerate(words)}


@figure("2.2 characters of the story", 20479, real_data=True)
def _(text):
    return len(text)


@figure("2.2 pieces of the first regex demo", (11, 19, 10))
def _():
    text = "Hello, world. This, is a test."
    pieces = re.split(r"([,.]|\s)", text)
    return len(re.split(r"(\s)", text)), len(pieces), len([p for p in pieces if p.strip()])


@figure("2.2 tokens of the story", 4690, real_data=True)
def _(text):
    return len(ch02.split_into_tokens(text))


@figure("2.3 vocabulary", (1130, 0, 11, 49, 50), real_data=True)
def _(text):
    vocab = verdict_vocabulary(text)
    return len(vocab), vocab["!"], vocab["A"], vocab["Her"], vocab["Hermia"]


@figure(
    "2.3 ids of version 1",
    [1, 56, 2, 850, 988, 602, 533, 746, 5, 1126, 596, 5, 1, 67, 7, 38, 851, 1108, 754, 793, 7],
    real_data=True,
)
def _(text):
    sentence = """"It's the last he painted, you know,"
           Mrs. Gisburn said with pardonable pride."""
    return ch02.SimpleTokenizerV1(verdict_vocabulary(text)).encode(sentence)


@figure("2.4 extended vocabulary", [1127, 1128, 1129, 1130, 1131], real_data=True)
def _(text):
    vocab = verdict_vocabulary(text, "<|endoftext|>", "<|unk|>")
    return [vocab[w] for w in ("younger", "your", "yourself", "<|endoftext|>", "<|unk|>")]


@figure(
    "2.4 ids of version 2",
    [1131, 5, 355, 1126, 628, 975, 10, 1130, 55, 988, 956, 984, 722, 988, 1131, 7],
    real_data=True,
)
def _(text):
    vocab = verdict_vocabulary(text, "<|endoftext|>", "<|unk|>")
    return ch02.SimpleTokenizerV2(vocab).encode(
        "Hello, do you like tea? <|endoftext|> In the sunlit terraces of the palace."
    )


@figure("2.6 GPT-2 tokens of the story", 5145, real_data=True)
def _(text):
    return len(get_tokenizer().encode(text))


@figure("2.6 shifted targets", ([290, 4920, 2241, 287], [4920, 2241, 287, 257]), real_data=True)
def _(text):
    sample = get_tokenizer().encode(text)[50:]
    return sample[:4], sample[1:5]


@figure("2.6 batch of eight, stride 4", INPUTS_8_4, real_data=True)
def _(text):
    loader = ch02.create_dataloader_v1(text, 8, max_length=4, stride=4, shuffle=False)
    return next(iter(loader))[0].tolist()


@figure("2.6 second batch, stride 1", [[2885, 1464, 1807, 3619]], real_data=True)
def _(text):
    loader = ch02.create_dataloader_v1(text, 1, max_length=4, stride=1, shuffle=False)
    batches = iter(loader)
    next(batches)
    return next(batches)[1].tolist()


@figure(
    "2.7 embedding rows 2, 3, 5, 1",
    [
        [1.2753, -0.2010, -0.1606],
        [-0.4015, 0.9666, -1.1481],
        [-2.8400, -0.7849, -1.4096],
        [0.9178, 1.5810, 1.3010],
    ],
    DIGITS_4,
)
def _():
    torch.manual_seed(123)
    return torch.nn.Embedding(6, 3)(torch.tensor([2, 3, 5, 1])).detach()


# --- Chapter 3 ---

INPUTS = torch.tensor(
    [
        [0.43, 0.15, 0.89],
        [0.55, 0.87, 0.66],
        [0.57, 0.85, 0.64],
        [0.22, 0.58, 0.33],
        [0.77, 0.25, 0.10],
        [0.05, 0.80, 0.55],
    ]
)
BATCH = torch.stack((INPUTS, INPUTS))
CAUSAL = [
    [-0.4519, 0.2216],
    [-0.5874, 0.0058],
    [-0.6300, -0.0632],
    [-0.5675, -0.0843],
    [-0.5526, -0.0981],
    [-0.5299, -0.1081],
]


@figure("3.3.1 scores of query 2", [0.9544, 1.4950, 1.4754, 0.8434, 0.7070, 1.0865], DIGITS_4)
def _():
    return INPUTS @ INPUTS[1]


@figure("3.3.1 weights of query 2", [0.1385, 0.2379, 0.2333, 0.1240, 0.1082, 0.1581], DIGITS_4)
def _():
    return torch.softmax(INPUTS @ INPUTS[1], dim=0)


@figure(
    "3.3.2 all context vectors",
    [
        [0.4421, 0.5931, 0.5790],
        [0.4419, 0.6515, 0.5683],
        [0.4431, 0.6496, 0.5671],
        [0.4304, 0.6298, 0.5510],
        [0.4671, 0.5910, 0.5266],
        [0.4177, 0.6503, 0.5645],
    ],
    DIGITS_4,
)
def _():
    return torch.softmax(INPUTS @ INPUTS.T, dim=-1) @ INPUTS


@figure(
    "3.4.2 SelfAttention_v1",
    [
        [0.2996, 0.8053],
        [0.3061, 0.8210],
        [0.3058, 0.8203],
        [0.2948, 0.7939],
        [0.2927, 0.7891],
        [0.2990, 0.8040],
    ],
    DIGITS_4,
)
def _():
    torch.manual_seed(123)
    return ch03.SelfAttention_v1(3, 2)(INPUTS).detach()


@figure(
    "3.4.2 SelfAttention_v2",
    [
        [-0.0739, 0.0713],
        [-0.0748, 0.0703],
        [-0.0749, 0.0702],
        [-0.0760, 0.0685],
        [-0.0763, 0.0679],
        [-0.0754, 0.0693],
    ],
    DIGITS_4,
)
def _():
    torch.manual_seed(789)
    return ch03.SelfAttention_v2(3, 2)(INPUTS).detach()


@figure(
    "3.5.2 dropout of ones",
    [
        [2, 2, 0, 2, 2, 0],
        [0, 0, 0, 2, 0, 2],
        [2, 2, 2, 2, 0, 2],
        [0, 2, 2, 0, 0, 2],
        [0, 2, 0, 2, 0, 2],
        [0, 2, 2, 2, 2, 0],
    ],
)
def _():
    torch.manual_seed(123)
    return torch.nn.Dropout(0.5)(torch.ones(6, 6)).int().tolist()


@figure("3.5.3 CausalAttention", [CAUSAL, CAUSAL], DIGITS_4)
def _():
    torch.manual_seed(123)
    return ch03.CausalAttention(3, 2, 6, 0.0)(BATCH).detach()


@figure(
    "3.6.1 second head of the wrapper",
    [
        [0.4772, 0.1063],
        [0.5891, 0.3257],
        [0.6202, 0.3860],
        [0.5478, 0.3589],
        [0.5321, 0.3428],
        [0.5077, 0.3493],
    ],
    DIGITS_4,
)
def _():
    torch.manual_seed(123)
    return ch03.MultiHeadAttentionWrapper(3, 2, 6, 0.0, num_heads=2)(BATCH)[0, :, 2:].detach()


@figure(
    "3.6.2 MultiHeadAttention",
    [
        [0.3190, 0.4858],
        [0.2943, 0.3897],
        [0.2856, 0.3593],
        [0.2693, 0.3873],
        [0.2639, 0.3928],
        [0.2575, 0.4028],
    ],
    DIGITS_4,
)
def _():
    torch.manual_seed(123)
    return ch03.MultiHeadAttention(3, 2, 6, 0.0, num_heads=2)(BATCH)[1].detach()


@figure("exercise 3.2 first and last row", [[-0.5740, 0.2216], [-0.6424, -0.1065]], DIGITS_4)
def _():
    torch.manual_seed(123)
    wrapper = ch03.MultiHeadAttentionWrapper(3, 1, 6, 0.0, num_heads=2)
    return wrapper(BATCH)[0, [0, 5]].detach()


@figure("exercise 3.3 parameters", 2_360_064)
def _():
    mha = ch03.MultiHeadAttention(768, 768, 1024, 0.0, num_heads=12)
    return sum(p.numel() for p in mha.parameters())


# --- Chapter 4 ---


def model_124m(context_length=1024):
    torch.manual_seed(123)
    return ch04.GPTModel(ch04.GPT_CONFIG_124M | {"context_length": context_length})


def batch_of_two():
    texts = ("Every effort moves you", "Every day holds a")
    return torch.tensor([get_tokenizer().encode(text) for text in texts])


@figure("4.1 ids of the batch", [[6109, 3626, 6100, 345], [6109, 1110, 6622, 257]])
def _():
    return batch_of_two().tolist()


def layer_norm_example():
    torch.manual_seed(123)
    x = torch.randn(2, 5)
    return torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU())(x).detach()


@figure("4.2 mean and variance before layer norm", [0.1324, 0.2170, 0.0231, 0.0398], DIGITS_4)
def _():
    out = layer_norm_example()
    return torch.cat([out.mean(-1), out.var(-1)])


@figure("4.2 variance after layer norm", [0.9995, 0.9997], DIGITS_4)
def _():
    return ch04.LayerNorm(6)(layer_norm_example()).var(-1, unbiased=False).detach()


@figure(
    "4.6 logits of the batch",
    [
        [0.3613, 0.4222, -0.0711, 0.3483, 0.4661, -0.2838],
        [-0.1565, 0.3926, 0.3288, 1.2630, -0.1858, 0.0388],
    ],
    DIGITS_4,
)
def _():
    logits = model_124m()(batch_of_two()).detach()
    ends = [0, 1, 2, -3, -2, -1]
    return torch.stack([logits[0, 0, ends], logits[1, -1, ends]])


@figure("4.6 parameters, tied and in megabytes", (163_009_536, 124_412_160, "621.83"))
def _():
    with torch.device("meta"):
        model = ch04.GPTModel(ch04.GPT_CONFIG_124M)
    total = sum(p.numel() for p in model.parameters())
    return total, total - model.out_head.weight.numel(), f"{total * 4 / 1024**2:.2f}"


@figure("exercise 4.1 parameters of feed-forward and attention", (4_722_432, 2_360_064))
def _():
    block = ch04.TransformerBlock(ch04.GPT_CONFIG_124M)
    return tuple(sum(p.numel() for p in part.parameters()) for part in (block.ff, block.att))


@figure(
    "exercise 4.2 sizes",
    {
        "gpt2-medium (355M)": (406_212_608, 354_749_440, "1549.58"),
        "gpt2-large (774M)": (838_220_800, 773_891_840, "3197.56"),
        "gpt2-xl (1558M)": (1_637_792_000, 1_557_380_800, "6247.68"),
    },
)
def _():
    sizes = {}
    for name in list(ch04.model_configs)[1:]:
        with torch.device("meta"):
            model = ch04.GPTModel(ch04.GPT_CONFIG_124M | ch04.model_configs[name])
        total = sum(p.numel() for p in model.parameters())
        tied = total - model.out_head.weight.numel()
        sizes[name] = (total, tied, f"{total * 4 / 1024**2:.2f}")
    return sizes


GREEDY = [15496, 11, 314, 716, 27018, 24086, 47843, 30961, 42348, 7267, 49706, 43231, 47062, 34657]


@figure("4.7 greedy tokens of the untrained models", [GREEDY, GREEDY])
def _():
    results = []
    for cls in (ch04.GPTModel, ch04.GPTModelFast):
        torch.manual_seed(123)
        model = cls(ch04.GPT_CONFIG_124M).eval()
        ids = torch.tensor([GREEDY[:4]])
        results.append(ch04.generate_text_simple(model, ids, 10, 1024)[0].tolist())
    return results


# --- Chapter 5 ---

PROBAS = [[7.4541e-05, 3.1061e-05, 1.1563e-05], [1.0337e-05, 5.6776e-05, 4.7559e-06]]
LOGITS = torch.tensor([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79])


@figure(
    "5.1.1 text of the untrained model",
    [6109, 3626, 6100, 345, 34245, 5139, 2492, 25405, 17434, 17853, 5308, 3398, 13174, 43071],
)
def _():
    ids = ch05.text_to_token_ids("Every effort moves you", get_tokenizer())
    return ch04.generate_text_simple(model_124m(256).eval(), ids, 10, 256)[0].tolist()


def logits_and_targets():
    inputs = torch.tensor([[16833, 3626, 6100], [40, 1107, 588]])
    targets = torch.tensor([[3626, 6100, 345], [1107, 588, 11311]])
    with torch.no_grad():
        return model_124m(256).eval()(inputs), targets


@figure("5.1.2 most probable ids", [[16657, 339, 42826], [49906, 29669, 41751]])
def _():
    return logits_and_targets()[0].argmax(-1).tolist()


@figure("5.1.2 probabilities of the targets", PROBAS, 1.1e-8)
def _():
    logits, targets = logits_and_targets()
    return torch.softmax(logits, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


@figure("5.1.2 loss", 10.7940, DIGITS_4)
def _():
    logits, targets = logits_and_targets()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


@figure("5.1.2 perplexity", 48725.8, 0.2)
def _():
    logits, targets = logits_and_targets()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).exp()


def loaders(text):
    torch.manual_seed(123)
    split = int(0.9 * len(text))
    train = ch02.create_dataloader_v1(text[:split], 2, 256, 256)
    return train, ch02.create_dataloader_v1(text[split:], 2, 256, 256, False, False)


@figure("5.1.3 batches and tokens", (9, 1, 4608, 512), real_data=True)
def _(text):
    train, val = loaders(text)
    return len(train), len(val), *(sum(x.numel() for x, _ in loader) for loader in (train, val))


@figure("5.1.3 initial losses", [10.98758, 10.98110], 2e-5, real_data=True)
def _(text):
    train, val = loaders(text)
    model = model_124m(256).eval()
    torch.manual_seed(123)
    return ch05.evaluate_model(model, train, val, "cpu", eval_iter=None)


@figure("5.2 parameters of the training model", 162_419_712)
def _():
    with torch.device("meta"):
        model = ch04.GPTModel(ch04.GPT_CONFIG_124M | {"context_length": 256})
    return sum(p.numel() for p in model.parameters())


@figure(
    "5.3.1 sampled counts at temperatures 1, 0.1 and 5",
    [
        [73, 0, 0, 582, 2, 0, 0, 343, 0],
        [0, 0, 0, 985, 0, 0, 0, 15, 0],
        [165, 75, 42, 239, 71, 46, 32, 227, 103],
    ],
)
def _():
    counts = []
    for temperature in (1, 0.1, 5):
        probas = ch05.softmax_with_temperature(LOGITS, temperature)
        torch.manual_seed(123)
        drawn = torch.tensor([torch.multinomial(probas, 1).item() for _ in range(1000)])
        counts.append(torch.bincount(drawn, minlength=9).tolist())
    return counts


@figure("5.3.2 probabilities of the top three", [0.0615, 0.5775, 0.3610], DIGITS_4)
def _():
    values, indices = LOGITS.topk(3)
    kept = torch.full_like(LOGITS, -torch.inf).scatter(0, indices, values)
    return torch.softmax(kept, dim=0)[[0, 3, 7]]


@figure("exercise 5.1 probability of pizza at temperature 5", 0.0430, DIGITS_4)
def _():
    return ch05.softmax_with_temperature(LOGITS, 5)[6]


# --- Chapter 7 ---

TOY = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]


@figure("7.2 entries to train, test and validate", (1100, 935, 110, 55), real_data=True)
def _(text):
    data = real_instructions()
    train, val, test = ch07.split_data(data)
    assert train + test + val == data  # in the order of the file
    return len(data), len(train), len(test), len(val)


def real_instructions():
    return ch07.load_entries(fetch("instruction-data", allow_sample=False))


@figure(
    "7.2 ids of the preamble",
    [21106, 318, 281, 12064, 326, 8477, 257, 4876, 13]
    + [19430, 257, 2882, 326, 20431, 32543, 262, 2581, 13],
)
def _():
    prompt = ch07.format_input({"instruction": "Say hello.", "input": ""})
    return get_tokenizer().encode(prompt.split("\n\n")[0])


@figure(
    "7.3 targets of the toy batch",
    [[1, 2, 3, 4, 50256], [6, 50256, -100, -100, -100], [8, 9, 50256, -100, -100]],
)
def _():
    return ch07.custom_collate_fn(TOY)[1].tolist()


@figure(
    "7.3 cross-entropy of two and three tokens, and one ignored", [1.1269, 0.7936, 1.1269], DIGITS_4
)
def _():
    logits = torch.tensor([[-1.0, 1.0], [-0.5, 1.5], [-0.5, 1.5]])
    cross_entropy = torch.nn.functional.cross_entropy
    return [
        cross_entropy(logits[: len(targets)], torch.tensor(targets))
        for targets in ([0, 1], [0, 1, 1], [0, 1, -100])
    ]


@figure(
    "7.4 widths of the training batches",
    (
        [61, 76, 73, 68, 65, 72, 80, 67],
        [66, 78, 66, 64, 83, 66, 74, 69],
        (116, 57, 91, 8135),
    ),
    real_data=True,
)
def _(text):
    train, _, _ = ch07.split_data(real_instructions())
    torch.manual_seed(123)
    loader = torch.utils.data.DataLoader(
        ch07.InstructionDataset(train, get_tokenizer()),
        batch_size=8,
        collate_fn=ch07.custom_collate_fn,
        shuffle=True,
        drop_last=True,
    )
    widths = [inputs.shape[1] for inputs, _ in loader]
    return widths[:8], widths[-8:], (len(widths), min(widths), max(widths), sum(widths))


@figure("exercise 7.1 ids of <|user|>", [27, 91, 7220, 91, 29])
def _():
    return get_tokenizer().encode("<|user|>")


@figure("exercise 7.2 masked targets of the second row", ((3, 64), 46, 2), real_data=True)
def _(text):
    data = real_instructions()
    dataset = ch07.InstructionDatasetWithMasking([data[i] for i in (999, 43, 265)], get_tokenizer())
    targets = ch07.custom_collate_with_masking_fn(list(dataset))[1]
    assert targets[1, 46:52].tolist() == [198, 198, 21017, 18261, 25, 198]
    masked = (targets[1] == -100).tolist()
    return tuple(targets.shape), masked.index(False), sum(masked[46:])


@figure("exercise 7.4 parameters: all, and of LoRA", (406_286_336, 7_898_384))
def _():
    with torch.device("meta"):
        model = ch04.GPTModel(ch04.BASE_CONFIG | ch04.model_configs["gpt2-medium (355M)"])
        total = sum(p.numel() for p in model.parameters())
        model.requires_grad_(False)
        appendix_e.replace_linear_with_lora(model, rank=16, alpha=16)
    return total, sum(p.numel() for p in model.parameters() if p.requires_grad)


# --- Appendix D ---


@figure("D tokens and batches", (4612, 534, 9, 1), real_data=True)
def _(text):
    split = int(0.9 * len(text))
    tokens = [len(get_tokenizer().encode(part)) for part in (text[:split], text[split:])]
    return *tokens, *(len(loader) for loader in loaders(text))


@figure("D.1 updates, and how many of them are warmup", (135, 27), real_data=True)
def _(text):
    total_steps = 15 * len(loaders(text)[0])
    return total_steps, int(0.2 * total_steps)


@figure(
    "D.3 highest gradient before and after clipping", [0.0411, 0.0185], DIGITS_4, real_data=True
)
def _(text):
    train, _ = loaders(text)
    for _ in range(2 * 15):  # the epochs of D.1 and D.2, which only look at the learning rate
        *_, batch = train
    model = model_124m(256)
    ch05.calc_loss_batch(*batch, model, "cpu").backward()
    before = appendix_d.find_highest_gradient(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    return before, appendix_d.find_highest_gradient(model)


# --- Appendix E ---


@figure("E.4 trainable parameters: all, none, LoRA", (124_441_346, 0, 2_666_528))
def _():
    def count():
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    with torch.device("meta"):
        model = ch04.GPTModel(ch04.BASE_CONFIG | ch04.model_configs["gpt2-small (124M)"])
        model.out_head = torch.nn.Linear(768, 2)
        counts = [count()]
        model.requires_grad_(False)
        counts.append(count())
        appendix_e.replace_linear_with_lora(model, rank=16, alpha=16)
    return *counts, count()


# --- The comparison ---


@pytest.mark.parametrize(("compute", "value", "tolerance"), FIGURES)
def test_figure_of_the_book(compute, value, tolerance, request):
    needs_text = compute.__code__.co_argcount
    got = compute(request.getfixturevalue("the_verdict")) if needs_text else compute()
    if tolerance == EXACT:
        assert got == value
    else:
        torch.testing.assert_close(
            torch.as_tensor(got, dtype=torch.float64),
            torch.as_tensor(value, dtype=torch.float64),
            rtol=0,
            atol=tolerance,
        )


# --- The table of tools/book_figures.py ---


def test_the_table_tells_figures_that_agree_from_those_that_do_not(monkeypatch, capsys):
    def row(name, value, tolerance=EXACT, **options):
        return pytest.param(lambda: 1.5, value, tolerance, id=name, **options)

    rows = [row("1 right", 1.5), row("1 near", 1.4, 0.2), row("1 wrong", 1.4, 0.01)]
    text_needed = row("1 text", 3, marks=[pytest.mark.real_data])

    def download():
        raise DownloadError("no network")

    data_needed = pytest.param(download, 3, EXACT, id="1 data")
    monkeypatch.setattr(book_figures, "load_figures", lambda: [*rows, text_needed, data_needed])
    monkeypatch.setattr(book_figures, "real_text", lambda: None)
    monkeypatch.setattr("sys.argv", ["book_figures", "1"])
    assert book_figures.main() == 1
    printed = capsys.readouterr().out
    assert "| 1 right | 1.5 | 1.5 | yes |" in printed
    assert "| 1 near | 1.4 | 1.5 | yes |" in printed
    assert "| 1 wrong | 1.4 | 1.5 | NO (allowed: ± 0.01) |" in printed
    assert "| 1 text | 3 |  | not computed: needs the real text |" in printed
    assert "| 1 data | 3 |  | not computed: needs the book's data set |" in printed
    assert "2 yes, 1 NO, 2 not computed" in printed
