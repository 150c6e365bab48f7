"""Diagrams of chapter 5: ``python tools/figures/ch05.py`` writes them as SVG files."""

import math

from drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    WHITE,
    arrow,
    box,
    canvas,
    cells,
    label,
    plt,
    save_all,
)

FOLDER = "ch05/01_main-chapter-code/figures"


def main() -> None:
    save_all(
        FOLDER,
        next_token_loss,
        windows_and_batches,
        training_loop,
        temperature,
        decoding_choices,
        checkpoint,
        gpt2_weights,
    )


def line(ax, *points):
    """A line without a head through the given points."""
    ax.plot([x for x, _ in points], [y for _, y in points], color=INK, linewidth=1.2)


def next_token_loss():
    """Six predictions of a batch, the probability of each target, and their mean."""
    fig, ax = canvas(9.8, 3.9)
    top, height = 3.2, 0.4
    rows = [
        ("every", "effort", "7.45e-05", "9.50"),
        ("every effort", "moves", "3.11e-05", "10.38"),
        ("every effort moves", "you", "1.16e-05", "11.37"),
        ("I", "really", "1.03e-05", "11.48"),
        ("I really", "like", "5.68e-05", "9.78"),
        ("I really like", "chocolate", "4.76e-06", "12.26"),
    ]
    columns = [  # left edge, width, heading
        (0.1, 1.8, "input"),
        (2.0, 1.1, "target"),
        (5.1, 1.3, "probability that\nit gives the target"),
        (7.0, 1.1, "loss:\n-log(probability)"),
    ]
    for left, width, heading in columns:
        label(ax, left + width / 2, top + 0.3, heading, size=9.5, weight="bold")
    for (left, width, _), values, color in zip(
        columns, zip(*rows, strict=True), (BLUE, ORANGE, WHITE, RED), strict=True
    ):
        half = 3
        for block in (0, 1):
            part = [[value] for value in values[block * half : (block + 1) * half]]
            y = top - block * (half * height + 0.2)
            cells(ax, left, y, part, [[color]] * half, width=width, height=height)
    middle = top - 3 * height - 0.1
    box(ax, 3.5, middle - 0.5, 1.2, 1.0, "GPTModel", GREEN, weight="bold")
    for start, end in [(3.12, 3.48), (4.72, 5.08), (6.42, 6.98), (8.12, 8.6)]:
        arrow(ax, (start, middle), (end, middle))
    box(ax, 8.63, middle - 0.4, 1.0, 0.8, "mean:\n10.79", RED, weight="bold")
    label(
        ax,
        4.9,
        0.15,
        "a batch of two texts: six predictions, six losses, one number to make smaller",
        size=9.5,
        style="italic",
    )
    return fig


def windows_and_batches():
    """A text of 5,145 tokens, cut in two parts, windows and batches."""
    fig, ax = canvas(8.6, 3.0)
    left, width, parts = 0.3, 8.0, 10
    cell = width / parts
    box(ax, left, 2.2, 9 * cell - 0.04, 0.45, "first 90 %: training, 18 windows of 256", BLUE)
    box(ax, left + 9 * cell, 2.2, cell, 0.45, "10 %: 2", ORANGE)
    label(ax, left, 2.82, '"The Verdict", 5,145 tokens', ha="left", weight="bold", size=9.5)
    for number in range(9):
        x = left + number * cell
        for row in (0, 1):
            text = str(2 * number + row + 1)
            box(ax, x + 0.05, 1.25 - 0.42 * row, cell - 0.14, 0.36, text, BLUE, size=9)
        label(ax, x + cell / 2, 0.62, f"batch {number + 1}", size=8)
        arrow(ax, (x + cell / 2, 2.15), (x + cell / 2, 1.68))
    x = left + 9 * cell
    for row in (0, 1):
        box(ax, x + 0.05, 1.25 - 0.42 * row, cell - 0.1, 0.36, str(row + 1), ORANGE, size=9)
    arrow(ax, (x + cell / 2, 2.15), (x + cell / 2, 1.68))
    label(ax, x + cell / 2, 0.62, "to test", size=8)
    label(
        ax,
        left + 4.5 * cell,
        0.25,
        "nine batches of two windows are one epoch (shuffled: which windows meet is chance)",
        size=9,
        style="italic",
    )
    return fig


def temperature():
    """The same three logits as probabilities at three temperatures."""
    fig, ax = canvas(8.2, 2.7)
    words, logits = ("forward", "toward", "closer"), (6.75, 6.28, 4.51)
    for place, (value, about) in enumerate(
        (
            (0.25, "sharper: almost greedy"),
            (1.0, "as the model says"),
            (4.0, "flatter: more chance"),
        )
    ):
        x = 0.4 + 2.7 * place
        powers = [math.exp(logit / value) for logit in logits]
        for i, (word, power) in enumerate(zip(words, powers, strict=True)):
            share = power / sum(powers)
            ax.add_patch(
                plt.Rectangle((x + 0.7 * i, 0.65), 0.5, 1.3 * share, facecolor=BLUE, edgecolor=INK)
            )
            label(ax, x + 0.7 * i + 0.25, 0.77 + 1.3 * share, f"{share:.2f}", size=8.5)
            label(ax, x + 0.7 * i + 0.25, 0.5, word, size=8.5)
        ax.plot([x - 0.1, x + 2.0], [0.65, 0.65], color=INK, linewidth=0.8)
        label(ax, x + 0.95, 2.45, f"temperature {value:g}", weight="bold", size=9.5)
        label(ax, x + 0.95, 0.2, about, size=8.5, style="italic")
    return fig


def checkpoint():
    """What a file must hold so that training goes on as if it had never stopped."""
    fig, ax = canvas(8.6, 2.75)
    parts = (
        (0.2, 1.7, BLUE, "weights", "the model,\nto write text"),
        (
            2.0,
            3.4,
            GREEN,
            "two running means\nper weight (AdamW)",
            "the optimizer, to go on\nwith training",
        ),
        (5.5, 1.4, ORANGE, "random\nnumbers' state", "order of batches,\ndropout masks"),
        (7.0, 1.4, PURPLE, "epoch, batch,\nlosses", "where it\nstopped"),
    )
    for x, width, color, text, about in parts:
        box(ax, x, 1.25, width, 0.75, text, color, size=9)
        label(ax, x + width / 2, 0.9, about, size=8.5, va="top")
    for start, end, y, text in (
        (0.2, 1.9, 2.13, "model.pth"),
        (0.2, 5.4, 2.33, "model_and_optimizer.pth"),
        (0.2, 8.4, 2.53, "save_checkpoint: the same losses to the last bit"),
    ):
        line(ax, (start, y - 0.06), (end, y - 0.06))
        label(ax, end, y + 0.02, text, size=8, ha="right")
    return fig


def training_loop():
    """Epochs contain batches, each with four steps; now and then the model is looked at."""
    fig, ax = canvas(9.6, 4.0)
    box(ax, 0.1, 0.15, 9.4, 3.7, "", "#f7f7f7")
    label(ax, 0.3, 3.6, "for each epoch (once through the whole text)", ha="left", weight="bold")
    box(ax, 0.35, 1.15, 7.1, 2.2, "", "#eef4fb")
    label(ax, 0.55, 3.1, "for each batch of the training data", ha="left", weight="bold")
    steps = [
        ("forget the old\ngradients", "optimizer.zero_grad()", GREY),
        ("predict,\ncompute the loss", "calc_loss_batch(...)", BLUE),
        ("gradient of the loss\nfor each weight", "loss.backward()", ORANGE),
        ("move each weight\nagainst its gradient", "optimizer.step()", GREEN),
    ]
    for i, (text, code, color) in enumerate(steps):
        left = 0.55 + i * 1.72
        box(ax, left, 2.0, 1.5, 0.75, text, color, size=8.5)
        label(ax, left + 0.75, 1.78, code, size=7.8, family="monospace")
        if i:
            arrow(ax, (left - 0.2, 2.38), (left - 0.02, 2.38))
    line(ax, (6.46, 1.6), (6.46, 1.38), (1.3, 1.38))
    arrow(ax, (1.3, 1.37), (1.3, 1.62))
    label(ax, 3.9, 1.25, "next batch", size=8.5, style="italic")
    box(ax, 7.75, 2.0, 1.55, 0.75, "losses on training\nand validation data", PURPLE, size=8.5)
    arrow(ax, (7.23, 2.38), (7.73, 2.38))
    label(ax, 8.52, 2.93, "every eval_freq batches", size=8.5, style="italic")
    label(ax, 8.52, 1.78, "evaluate_model(...)", size=7.8, family="monospace")
    box(ax, 3.1, 0.3, 1.6, 0.6, "print a sample text", PURPLE, size=9)
    arrow(ax, (3.9, 1.13), (3.9, 0.93))
    label(ax, 4.85, 0.6, "generate_and_print_sample(...)", size=7.8, ha="left", family="monospace")
    label(ax, 2.95, 0.6, "after each epoch", size=8.5, ha="right", style="italic")
    return fig


def decoding_choices():
    """From logits to one token: the order of the choices, with five tokens as an example."""
    names = ["forward", "toward", "closer", "inches", "pizza"]
    logits = [6.75, 6.28, 4.51, 1.63, -1.89]
    kept = [math.exp(x / 1.5) for x in logits[:3]]
    probas = [x / sum(kept) for x in kept]
    shares = [x / sum(probas[:2]) for x in probas[:2]]
    fig, ax = canvas(10.2, 4.6)
    gone = ["0"] * 3
    panels = [  # left edge, title, lengths of the bars, texts, colour, note
        (1.15, "logits", [(x + 2) / 9 for x in logits], [f"{x:.2f}" for x in logits], BLUE, ""),
        (
            3.45,
            "top_k = 3",
            [(x + 2) / 9 for x in logits[:3]],
            ["6.75", "6.28", "4.51", "-inf", "-inf"],
            BLUE,
            "keep the 3 largest",
        ),
        (
            5.75,
            "temperature = 1.5",
            [2 * x for x in probas],
            [f"{x:.3f}" for x in probas] + gone[:2],
            ORANGE,
            "divide, then softmax",
        ),
        (
            8.05,
            "top_p = 0.8",
            [2 * x for x in shares],
            [f"{x:.3f}" for x in shares] + gone,
            GREEN,
            "keep the fewest that\nreach 0.8 together",
        ),
    ]
    top = 3.7
    for i, name in enumerate(names):
        label(ax, 1.0, top - 0.2 - 0.36 * i, name, size=9.5, ha="right")
    for left, title, lengths, texts, color, note in panels:
        label(ax, left + 0.75, top + 0.35, title, weight="bold")
        for i, text in enumerate(texts):
            y = top - 0.07 - 0.36 * i
            length = lengths[i] if i < len(lengths) else 0
            if length:
                cells(ax, left, y, [[""]], [[color]], width=length, height=0.26)
            label(ax, left + length + 0.07, y - 0.13, text, size=8.5, ha="left")
        label(ax, left + 0.75, top - 2.15, note, size=8.5, style="italic", va="top")
    for left in (2.95, 5.25, 7.5):
        arrow(ax, (left, top - 0.9), (left + 0.38, top - 0.9))
    box(ax, 8.05, 0.4, 1.6, 0.55, "draw one at random", GREEN, size=9)
    arrow(ax, (8.85, 1.1), (8.85, 0.97))
    box(ax, 1.15, 0.4, 1.6, 0.55, "take the largest", GREY, size=9)
    arrow(ax, (1.95, 1.75), (1.95, 0.97))
    label(ax, 2.05, 1.3, "temperature = 0", size=9, ha="left", weight="bold")
    label(ax, 1.95, 0.2, "“forward”, always", size=8.5, style="italic")
    label(ax, 8.85, 0.2, "“forward” or “toward”", size=8.5, style="italic")
    return fig


def gpt2_weights():
    """GPT-2's tensors at the left, ours at the right, and what happens on the way."""
    fig, ax = canvas(9.8, 6.6)
    ours, theirs = 6.15, 0.15
    label(ax, theirs + 1.55, 6.4, "GPT-2 (name on the hub)", weight="bold")
    label(ax, ours + 1.75, 6.4, "GPTModel", weight="bold")
    same, turned = "as it is", "transposed"
    rows = [  # y, their name, our names, what is done, colour
        (5.85, "wte.weight", ["tok_emb.weight", "out_head.weight"], "copied twice", ORANGE),
        (5.1, "wpe.weight", ["pos_emb.weight"], same, BLUE),
        (
            4.1,
            "h.0.attn.c_attn.weight",
            [f"trf_blocks.0.att.W_{part}.weight" for part in ("query", "key", "value")],
            "split in three,\n" + turned,
            RED,
        ),
        (3.0, "h.0.attn.c_proj.weight", ["trf_blocks.0.att.out_proj.weight"], turned, GREEN),
        (2.55, "h.0.mlp.c_fc.weight", ["trf_blocks.0.ff.layers.0.weight"], turned, GREEN),
        (2.1, "h.0.mlp.c_proj.weight", ["trf_blocks.0.ff.layers.2.weight"], turned, GREEN),
        (1.65, "h.0.ln_1.weight", ["trf_blocks.0.norm1.scale"], same, BLUE),
        (1.2, "h.0.ln_1.bias", ["trf_blocks.0.norm1.shift"], same, BLUE),
        (0.3, "ln_f.weight", ["final_norm.scale"], same, BLUE),
    ]
    for y, name, targets, action, color in rows:
        box(ax, theirs, y - 0.17, 3.1, 0.34, "", color)
        label(ax, theirs + 0.12, y, name, size=9, ha="left", family="monospace")
        for i, target in enumerate(targets):
            middle = y + (len(targets) - 1) * 0.2 - i * 0.4
            box(ax, ours, middle - 0.17, 3.5, 0.34, "", color)
            label(ax, ours + 0.12, middle, target, size=9, ha="left", family="monospace")
            arrow(ax, (theirs + 3.14, y), (ours - 0.04, middle))
        step = 0.47 if "\n" in action else 0.14 if len(targets) == 1 else 0.34
        label(ax, 4.7, y + step, action, size=8.5, style="italic")
    label(ax, 4.7, 3.45, "and the biases, in the same way", size=8.5, style="italic")
    label(ax, 4.7, 0.78, "… ln_2, and all other blocks, in the same way …", size=8.5,
          style="italic")  # fmt: skip
    return fig


if __name__ == "__main__":
    main()
