"""Diagrams of chapter 7: ``python tools/figures/ch07.py`` writes them as SVG files."""

from drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
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
    save_all(FOLDER, finetuning_pipeline, prompt_format, padding_and_masking)


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


if __name__ == "__main__":
    main()
