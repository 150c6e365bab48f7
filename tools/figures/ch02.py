"""Diagrams of chapter 2: ``python tools/figures/ch02.py`` writes them as SVG files."""

from drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, WHITE, arrow, box, canvas
from drawing import cells, label, plt, save

FOLDER = "ch02/01_main-chapter-code/figures"

# The story's first four tokens in GPT-2's vocabulary; "␣" stands for a space
TOKENS = {"I": 40, "␣H": 367, "AD": 2885, "␣always": 1464}


def main() -> None:
    for draw in (
        text_to_embeddings,
        word_vectors,
        encode_and_decode,
        special_tokens,
        bpe_merges,
        sliding_window,
        stride,
    ):
        save(draw(), f"{FOLDER}/{draw.__name__.replace('_', '-')}.svg")


def text_to_embeddings():
    """The chapter's pipeline, top to bottom, with the section of each step on the right."""
    fig, ax = canvas(8.2, 6.3)
    lefts = [2.0, 3.1, 4.2, 5.3]  # of the four columns
    width = 0.95
    box(ax, lefts[0], 5.7, lefts[-1] + width - lefts[0], 0.42, '"I HAD always …"', GREY)
    for i, (left, (token, token_id)) in enumerate(zip(lefts, TOKENS.items(), strict=True)):
        box(ax, left, 4.8, width, 0.42, token, BLUE)
        box(ax, left, 3.9, width, 0.42, str(token_id), ORANGE)
        vector(ax, left, 2.95, width, GREEN, i)
        vector(ax, left, 2.05, width, PURPLE, i + 4)
        vector(ax, left, 1.15, width, GREY, i + 8)
        label(ax, left + width / 2, 2.64, "+", size=13)
        label(ax, left + width / 2, 1.74, "=", size=13)
        for top in (5.65, 4.75, 3.85):
            arrow(ax, (left + width / 2, top), (left + width / 2, top - 0.38))
    middle = (lefts[0] + lefts[-1] + width) / 2
    arrow(ax, (middle, 1.08), (middle, 0.72))
    box(ax, lefts[0], 0.22, lefts[-1] + width - lefts[0], 0.46, "GPT (chapters 3 and 4)", WHITE)

    names = ["text", "tokens", "token ids", "token\nembeddings", "position\nembeddings"]
    for y, name in zip([5.91, 5.01, 4.11, 3.16, 2.26, 1.36], [*names, "input\nembeddings"]):
        label(ax, 1.8, y, name, ha="right", weight="bold")
    steps = {5.46: "split: 2.2 and 2.5", 4.56: "look up ids: 2.3 to 2.5"}
    steps |= {3.66: "look up vectors: 2.7", 2.64: "add positions: 2.8"}
    for y, step in steps.items():
        label(ax, 6.45, y, step, ha="left", style="italic")
    return fig


def vector(ax, left, bottom, width, color, seed):
    """A strip of five cells, some of them dark: a vector of which only the idea counts."""
    for j in range(5):
        strength = 0.25 + 0.75 * ((7 * seed + 5 * j + seed * j) % 11) / 10
        cell = (left + j * width / 5, bottom)
        ax.add_patch(plt.Rectangle(cell, width / 5, 0.42, facecolor=WHITE, edgecolor="none"))
        ax.add_patch(
            plt.Rectangle(cell, width / 5, 0.42, facecolor=color, edgecolor="none", alpha=strength)
        )
        ax.add_patch(plt.Rectangle(cell, width / 5, 0.42, fill=False, edgecolor=INK, linewidth=0.8))


def word_vectors():
    """Words as points in a plane: an invented example of three groups."""
    fig, ax = canvas(6.2, 3.9)
    arrow(ax, (0.6, 0.5), (5.9, 0.5))
    arrow(ax, (0.6, 0.5), (0.6, 3.7))
    label(ax, 3.2, 0.22, "first number of the vector")
    label(ax, 0.3, 2.1, "second number of the vector", rotation=90)
    groups = {
        BLUE: {"violin": (1.3, 3.1), "cello": (1.9, 3.3), "flute": (1.6, 2.6)},
        ORANGE: {"lake": (4.2, 2.9), "river": (4.6, 3.3), "sea": (5.0, 2.8)},
        GREEN: {"slow": (2.4, 1.0), "slower": (3.2, 1.2), "slowest": (4.0, 1.4)},
    }
    for color, words in groups.items():
        for word, (x, y) in words.items():
            ax.plot(x, y, "o", markersize=8, markerfacecolor=color, markeredgecolor=INK)
            label(ax, x, y - 0.22, word)
    return fig


def encode_and_decode():
    """A vocabulary is a table that is read in both directions."""
    fig, ax = canvas(8.6, 3.7)
    tokens = {"do": 355, "you": 1126, "like": 628, "tea": 975, "?": 10}
    box(ax, 0.2, 1.55, 1.7, 0.5, '"do you like tea?"', GREY)
    cells(ax, 2.7, 2.8, [[token] for token in tokens], [[BLUE]] * 5, width=0.8)
    table = sorted(tokens.items(), key=lambda item: item[1])
    rows, colors = [], []
    for token, token_id in table:
        rows += [[token, token_id], ["…", "…"]]
        colors += [[BLUE, ORANGE], [WHITE, WHITE]]
    cells(ax, 4.4, 3.1, rows, colors, width=0.75, height=0.26, size=8.5)
    cells(ax, 6.9, 2.8, [[i] for i in tokens.values()], [[ORANGE]] * 5, width=0.8)
    label(ax, 3.1, 3.0, "tokens", weight="bold")
    label(ax, 5.15, 3.28, "vocabulary", weight="bold")
    label(ax, 7.3, 3.0, "token ids", weight="bold")
    for start, end in [((1.95, 1.95), (2.65, 1.95)), ((3.55, 1.95), (4.35, 1.95))]:
        arrow(ax, start, end, color="#1f5fa8")
        arrow(ax, (end[0], 1.6), (start[0], 1.6), color="#b0641a")
    arrow(ax, (5.95, 1.95), (6.85, 1.95), color="#1f5fa8")
    arrow(ax, (6.85, 1.6), (5.95, 1.6), color="#b0641a")
    label(ax, 2.3, 2.18, "split", size=9)
    label(ax, 2.3, 1.38, "join", size=9)
    label(ax, 1.6, 3.1, "encode: left to right", color="#1f5fa8")
    label(ax, 1.6, 0.5, "decode: right to left", color="#b0641a")
    return fig


def special_tokens():
    """Unrelated documents in one stream of tokens, and a word without an entry."""
    fig, ax = canvas(9.2, 2.9)
    label(ax, 0.15, 2.65, "Documents in a row, a marker between them", ha="left", weight="bold")
    left = 0.15
    for text, width, color in [
        ("… and the bridge held.", 2.0, BLUE),
        ("<|endoftext|>", 1.35, RED),
        ("Take two eggs and …", 1.85, GREEN),
        ("<|endoftext|>", 1.35, RED),
        ("The match began …", 1.75, PURPLE),
    ]:
        box(ax, left, 1.95, width, 0.45, text)
        ax.patches[-1].set_facecolor(color)
        left += width + 0.12
    for x, name in [(1.15, "a tale"), (4.66, "a recipe"), (8.0, "a report")]:
        label(ax, x, 1.76, name, size=9, style="italic")
    label(ax, 0.15, 1.3, "A word without an entry in the vocabulary", ha="left", weight="bold")
    words = ["Hello", ",", "do", "you", "like", "tea", "?"]
    left = 0.15
    for word in words:
        width = 1.1 if word == "Hello" else 0.8
        known = word != "Hello"
        box(ax, left, 0.72, width, 0.36, word, GREY)
        box(ax, left, 0.1, width, 0.36, word if known else "<|unk|>", BLUE if known else RED)
        arrow(ax, (left + width / 2, 0.7), (left + width / 2, 0.48))
        left += width + 0.12
    return fig


def bpe_merges():
    """Bottom up, GPT-2's merges fuse the letters of an invented word to three tokens."""
    fig, ax = canvas(9.6, 3.8)
    word, step, height = "␣someunknownPlace", 0.56, 0.44
    # (first letter, end, level, id): the id of a merged piece says how early the merge was learned
    merges = [
        (0, 2, 1, 264), (2, 4, 1, 296), (2, 5, 2, 462), (0, 5, 3, 617),
        (5, 7, 1, 403), (9, 11, 1, 322), (9, 12, 2, 593), (5, 8, 2, 2954), (8, 12, 3, 3408),
        (5, 12, 4, 34680), (12, 14, 1, 3646), (14, 16, 1, 330), (14, 17, 2, 558),
        (12, 17, 3, 27271),
    ]  # fmt: skip
    return fig


def sliding_window():
    """Input and target windows over the story, and the predictions that they contain."""
    fig, ax = canvas(9.4, 4.9)
    return fig


def stride():
    """Four strides with windows of four tokens."""
    fig, ax = canvas(9.2, 5.0)
    return fig


if __name__ == "__main__":
    main()
