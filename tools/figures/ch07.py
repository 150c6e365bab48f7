"""Diagrams of chapter 7: ``python tools/figures/ch07.py`` writes them as SVG files."""

from drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    WHITE,
    arrow,
    box,
    canvas,
    cells,
    label,
    save_all,
)

FOLDER = "ch07/01_main-chapter-code/figures"


def main() -> None:
    save_all(
        FOLDER,
        finetuning_pipeline,
        prompt_format,
        split,
        batch_steps,
        batch_by_batch,
        padding_and_masking,
        what_counts,
        extract_response,
        judge,
    )


def finetuning_pipeline():
    """The three stages of the chapter: data, finetuning, evaluation."""
    fig, ax = canvas(7.2, 2.9)
    stages = [
        (
            "1. Data",
            BLUE,
            ["instructions and\nresponses (7.2)", "padded batches (7.3)", "data loaders (7.4)"],
        ),
        (
            "2. Finetuning",
            GREEN,
            ["pretrained GPT (7.5)", "predict the next token,\nas in pretraining (7.6)"],
        ),
        (
            "3. Evaluation",
            ORANGE,
            [
                "responses to unseen\ninstructions (7.7)",
                "score: rules, or another\nmodel as judge (7.8)",
            ],
        ),
    ]
    for i, (title, color, steps) in enumerate(stages):
        left = 0.1 + i * 2.45
        label(ax, left + 1.05, 2.65, title, size=11, weight="bold")
        gap = 2.3 / len(steps)
        for k, text in enumerate(steps):
            bottom = 2.35 - (k + 1) * gap + (gap - 0.6) / 2
            box(ax, left, bottom, 2.1, 0.6, text, color, size=9)
            if k:
                arrow(ax, (left + 1.05, bottom + gap - 0.02), (left + 1.05, bottom + 0.62))
        if i:
            arrow(ax, (left - 0.33, 1.2), (left - 0.03, 1.2))
    return fig


def prompt_format():
    """One entry as text in the two styles of the chapter."""
    fig, ax = canvas(7.2, 4.1)
    preamble = (
        "Below is an instruction that describes a\ntask. Write a response that appropriately\n"
    )
    preamble += "completes the request."
    alpaca = [
        (preamble, GREY, 0.8),
        ("### Instruction:\nName the opposite.", BLUE, 0.6),
        ("### Input:\nearly", PURPLE, 0.6),
        ("### Response:\nlate", ORANGE, 0.6),
    ]
    phi = [
        ("<|user|>\nName the opposite.", BLUE, 0.6),
        ("early", PURPLE, 0.4),
        ("<|assistant|>:\nlate", ORANGE, 0.6),
    ]
    for left, width, title, parts in (
        (0.15, 3.5, "Alpaca style", alpaca),
        (3.9, 2.2, "Phi-3 style", phi),
    ):
        label(ax, left + width / 2, 3.85, title, size=11, weight="bold")
        top = 3.6
        for text, color, height in parts:
            box(ax, left, top - height, width, height, "", color)
            label(ax, left + 0.12, top - height / 2, text, size=9, ha="left", family="monospace")
            top -= height + 0.14
    for i, (text, color) in enumerate(
        (
            ("fixed text", GREY),
            ("instruction", BLUE),
            ("input, if there is one", PURPLE),
            ("what the model must learn to write", ORANGE),
        )
    ):
        box(ax, 3.9, 1.0 - i * 0.28, 0.25, 0.2, "", color)
        label(ax, 4.25, 1.1 - i * 0.28, text, size=9, ha="left")
    return fig


def padding_and_masking():
    """Three rows of different lengths as inputs and targets of one batch."""
    fig, ax = canvas(7.4, 2.5)
    end = 50256
    rows = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    inputs, input_colors, targets, target_colors = [], [], [], []
    for row in rows:
        padding = 5 - len(row)
        inputs.append(row + [end] * padding)
        input_colors.append([BLUE] * len(row) + [GREY] * padding)
        targets.append([*row[1:], end, *[-100] * padding])
        target_colors.append([BLUE] * (len(row) - 1) + [ORANGE] + [WHITE] * padding)
    for left, title, texts, colors in (
        (0.15, "inputs", inputs, input_colors),
        (4.2, "targets", targets, target_colors),
    ):
        label(ax, left + 1.5, 2.25, title, size=11, weight="bold")
        cells(ax, left, 2.05, texts, colors, width=0.6)
    arrow(ax, (3.3, 1.45), (4.05, 1.45))
    label(ax, 3.68, 1.65, "shift by 1", size=8.5)
    for left, bottom, color, text in (
        (0.15, 0.4, BLUE, "token of the text"),
        (0.15, 0.1, GREY, "padding, 50256"),
        (4.2, 0.4, ORANGE, "end token, learned"),
        (4.2, 0.1, WHITE, "-100: left out of the loss"),
    ):
        box(ax, left, bottom, 0.25, 0.2, "", color)
        label(ax, left + 0.35, bottom + 0.1, text, size=9, ha="left")
    return fig


def split():
    """The file, cut in its own order."""
    fig, ax = canvas(7.2, 1.3)
    for left, width, text, color in (
        (0.1, 4.9, "935 to train", BLUE),
        (5.05, 1.1, "110 to test", ORANGE),
        (6.2, 0.9, "55 to\nvalidate", GREEN),
    ):
        box(ax, left, 0.5, width, 0.55, text, color)
    arrow(ax, (0.1, 0.25), (7.1, 0.25))
    label(ax, 3.6, 0.1, "order of the file", size=8.5)
    return fig


def batch_steps():
    """From an entry to a batch in five steps, each with an example."""
    fig, ax = canvas(7.6, 1.7)
    steps = [
        ("format", "### Instruction:\n...", BLUE),
        ("tokenize", "[21017, 46486,\n25, ...]", BLUE),
        ("pad", "[7, 8, 9,\nend, end]", GREY),
        ("shift", "[8, 9, end,\nend, end]", GREEN),
        ("mask", "[8, 9, end,\n-100, -100]", ORANGE),
    ]
    for i, (name, example, color) in enumerate(steps):
        left = 0.1 + i * 1.5
        box(ax, left, 0.95, 1.25, 0.5, name, color, weight="bold")
        label(ax, left + 0.62, 0.45, example, size=8.5, family="monospace")
        if i:
            arrow(ax, (left - 0.23, 1.2), (left - 0.02, 1.2))
    return fig


def batch_by_batch():
    """Padding to the longest row of each batch."""
    fig, ax = canvas(7.4, 2.0)
    left = 0.15
    for number, lengths in enumerate(([3, 5, 4], [7, 6, 8], [2, 4, 3])):
        width = max(lengths)
        rows = [[""] * width for _ in lengths]
        colors = [[BLUE] * n + [GREY] * (width - n) for n in lengths]
        cells(ax, left, 1.6, rows, colors, width=0.38, height=0.36)
        text = f"batch {number + 1}: {width} wide"
        label(ax, left + width * 0.19, 1.8, text, size=9)
        left += width * 0.38 + 0.35
    for x, color, text in ((0.15, BLUE, "token"), (1.5, GREY, "padding")):
        box(ax, x, 0.1, 0.25, 0.2, "", color)
        label(ax, x + 0.35, 0.2, text, size=9, ha="left")
    return fig


def what_counts():
    """The targets of one row in three versions."""
    fig, ax = canvas(7.4, 2.2)
    kinds = ["prompt"] * 5 + ["response"] * 3 + ["end"] + ["padding"] * 3
    color_of = {"prompt": BLUE, "response": ORANGE, "end": RED, "padding": GREY}
    short = {"prompt": "p", "response": "r", "end": "end", "padding": "pad"}
    versions = (
        ("all count", ()),
        ("padding left out", ("padding",)),
        ("prompt left out, too", ("padding", "prompt")),
    )
    for i, (name, left_out) in enumerate(versions):
        texts = [["-100" if kind in left_out else short[kind] for kind in kinds]]
        colors = [[WHITE if kind in left_out else color_of[kind] for kind in kinds]]
        label(ax, 1.65, 1.75 - i * 0.6, name, size=9, ha="right")
        cells(ax, 1.75, 1.95 - i * 0.6, texts, colors, width=0.46)
    label(ax, 4.5, 0.12, "p prompt, r response; -100 is left out of the loss", size=8.5)
    return fig


def extract_response():
    """What generate returns, and which part of it is the response."""
    fig, ax = canvas(7.2, 1.5)
    for left, width, text, color in (
        (0.1, 3.0, "prompt", GREY),
        (3.15, 1.5, "### Response:", WHITE),
        (4.7, 1.7, "The meal is ...", ORANGE),
        (6.45, 0.6, "end", RED),
    ):
        box(ax, left, 0.8, width, 0.5, text, color, size=9)
    label(ax, 1.6, 0.5, "given by us", size=9)
    label(ax, 4.1, 0.5, "written by the model", size=9)
    label(ax, 5.55, 0.2, "kept: this box only", size=9, weight="bold")
    arrow(ax, (5.55, 0.3), (5.55, 0.78))
    return fig


def judge():
    """A question to another model, and what becomes of its answer."""
    fig, ax = canvas(7.4, 1.9)
    for left, width, text, color in (
        (0.1, 1.75, "instruction,\nwanted response,\nmodel's response", BLUE),
        (2.35, 1.5, "question:\nhow good,\n0 to 100?", WHITE),
        (4.35, 1.3, "judge:\nanother\nmodel", PURPLE),
        (6.15, 1.1, '"85"\nor some\nother text', ORANGE),
    ):
        box(ax, left, 0.75, width, 0.95, text, color, size=9)
    for start, end in ((1.9, 2.3), (3.9, 4.3), (5.7, 6.1)):
        arrow(ax, (start, 1.22), (end, 1.22))
    label(ax, 4.1, 1.45, "HTTP", size=7.5)
    label(
        ax, 3.7, 0.35, "a clear number becomes the score; other answers are counted apart", size=9
    )
    return fig


if __name__ == "__main__":
    main()
