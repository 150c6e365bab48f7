"""The whole book in one picture, from text to assistant: ``python tools/figures/overview.py``."""

from drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, WHITE, arrow, box, canvas, label, save

STEPS = (  # how one token is predicted: what there is, from where it comes, color
    ("text", "", GREY),
    ("token ids", "tokenizer\nchapter 2", BLUE),
    ("vectors", "embeddings\nchapter 2", BLUE),
    ("context vectors", "attention\nchapter 3", BLUE),
    ("logits", "12 blocks\nchapter 4", BLUE),
    ("next token", "softmax, sampling\nchapters 4, 5", BLUE),
)
STAGES = (  # what the same model becomes: name, data, chapter, color
    ("GPT with\nrandom weights", "knows nothing", WHITE),
    ("pretrained GPT", "continues texts", GREEN),
    ("classifier", "says: spam, or not", ORANGE),
    ("assistant", "answers instructions", ORANGE),
    ("preferred assistant", "answers as people like it", PURPLE),
)


def overview():
    fig, ax = canvas(10.2, 4.3)
    title(ax, 4.08, "What the model does: predict the next token")
    width, gap = 1.22, 0.5
    for number, (name, how, color) in enumerate(STEPS):
        x = 0.15 + number * (width + gap)
        box(ax, x, 2.95, width, 0.62, name, color, size=9.5)
        if how:
            arrow(ax, (x - gap + 0.03, 3.26), (x - 0.03, 3.26))
            label(ax, x + width / 2, 2.62, how, size=8)
    last = 0.15 + (len(STEPS) - 1) * (width + gap) + width / 2
    ax.plot([last, last, 0.75, 0.75], [3.57, 3.78, 3.78, 3.72], color="#22303c", lw=1)
    arrow(ax, (0.75, 3.75), (0.75, 3.58))
    label(ax, 5.1, 3.88, "appended to the text, again and again", size=8)
    draw_stages(ax)
    return fig


def title(ax, y: float, text: str) -> None:
    label(ax, 0.15, y, text, size=11, ha="left", weight="bold")


def draw_stages(ax) -> None:
    title(ax, 2.1, "What it becomes: the same model, trained on other data")
    places = ((0.15, 0.85), (2.6, 0.85), (5.35, 1.3), (5.35, 0.25), (8.05, 0.25))
    for (x, y), (name, can, color) in zip(places, STAGES, strict=True):
        box(ax, x, y, 1.95, 0.55, name, color, size=9.5)
        label(ax, x + 0.975, y - 0.13, can, size=8)
    for start, end in (
        ((2.1, 1.12), (2.6, 1.12)),
        ((4.55, 1.2), (5.35, 1.55)),
        ((4.55, 1.05), (5.35, 0.6)),
        ((7.3, 0.52), (8.05, 0.52)),
    ):
        arrow(ax, start, end)
    label(ax, 2.35, 1.62, "much text\nchapter 5", size=8)
    label(ax, 4.72, 1.72, "labelled texts\nchapter 6", size=8)
    label(ax, 4.72, 0.42, "instructions\nand responses\nchapter 7", size=8)
    label(ax, 7.95, 1.02, "pairs of answers\nchapter 7, DPO", size=8)


if __name__ == "__main__":
    save(overview(), "docs/figures/overview.svg")
