"""Diagrams of chapter 2: ``python tools/figures/ch02.py`` writes them as SVG files."""

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

FOLDER = "ch02/01_main-chapter-code/figures"

# The story's first four tokens in GPT-2's vocabulary; "␣" stands for a space
TOKENS = {"I": 40, "␣H": 367, "AD": 2885, "␣always": 1464}


def main() -> None:
    save_all(
        FOLDER,
        text_to_embeddings,
        word_vectors,
        encode_and_decode,
        special_tokens,
        bpe_merges,
        sliding_window,
        stride,
    )


def text_to_embeddings():
    """The chapter's pipeline, top to bottom, with the section of each step on the right."""
    fig, ax = canvas(8.2, 6.3)
    lefts = [2.0, 3.1, 4.2, 5.3]  # of the four columns
    width = 0.95
    box(ax, lefts[0], 5.7, lefts[-1] + width - lefts[0], 0.42, '"I HAD always …"', GREY)
    for i, (left, (token, token_id)) in enumerate(zip(lefts, TOKENS.items(), strict=True)):
        box(ax, left, 4.8, width, 0.42, token, BLUE)
        box(ax, left, 3.9, width, 0.42, str(token_id), ORANGE)
        vector(ax, left, 2.95, width, "#6cab6c", i)
        vector(ax, left, 2.05, width, "#9a7fc0", i + 4)
        vector(ax, left, 1.15, width, "#7d8790", i + 8)
        label(ax, left + width / 2, 2.64, "+", size=13)
        label(ax, left + width / 2, 1.74, "=", size=13)
        for top in (5.65, 4.75, 3.85):
            arrow(ax, (left + width / 2, top), (left + width / 2, top - 0.38))
    middle = (lefts[0] + lefts[-1] + width) / 2
    arrow(ax, (middle, 1.08), (middle, 0.72))
    box(ax, lefts[0], 0.22, lefts[-1] + width - lefts[0], 0.46, "GPT (chapters 3 and 4)", WHITE)

    names = {5.91: "text", 5.01: "tokens", 4.11: "token ids"}
    names |= {3.16: "token\nembeddings", 2.26: "position\nembeddings", 1.36: "input\nembeddings"}
    for y, name in names.items():
        label(ax, 1.8, y, name, ha="right", weight="bold")
    steps = {5.46: "split: 2.2 and 2.5", 4.56: "look up ids: 2.3 to 2.5"}
    steps |= {3.66: "look up vectors: 2.7", 2.64: "add positions: 2.8"}
    for y, step in steps.items():
        label(ax, 6.45, y, step, ha="left", style="italic")
    return fig


def vector(ax, left, bottom, width, color, seed):
    """A strip of five cells of invented strengths: a vector of which only the idea counts."""
    strengths = [0.1 + 0.9 * ((7 * seed + 5 * j + seed * j) % 11) / 10 for j in range(5)]
    box_options = {"width": width / 5, "height": 0.42}
    for j, strength in enumerate(strengths):
        cell = (left + j * width / 5, bottom)
        ax.add_patch(plt.Rectangle(cell, **box_options, facecolor=color, alpha=strength, lw=0))
        ax.add_patch(plt.Rectangle(cell, **box_options, fill=False, edgecolor=INK, lw=0.8))


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
    rows, colors = [["…", "…"]], [[WHITE, WHITE]]
    for token, token_id in table:
        rows += [[token, token_id], ["…", "…"]]
        colors += [[BLUE, ORANGE], [WHITE, WHITE]]
    cells(ax, 4.4, 3.23, rows, colors, width=0.75, height=0.26, size=8.5)
    cells(ax, 6.9, 2.8, [[i] for i in tokens.values()], [[ORANGE]] * 5, width=0.8)
    label(ax, 3.1, 3.0, "tokens", weight="bold")
    label(ax, 5.15, 3.4, "vocabulary", weight="bold")
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
        box(ax, left, 1.95, width, 0.45, text, color)
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
    """Bottom up: GPT-2's merges fuse the characters of an unknown word to three tokens."""
    fig, ax = canvas(9.9, 3.9)
    word, step, height = "␣someunknownPlace", 0.56, 0.44
    letters = [(i, i + 1, 0) for i in range(len(word))]  # first, end, level
    # Which characters each merge fuses, [first, end): the smaller its id, the earlier GPT-2
    # learned the merge, and the earlier it is applied
    merges = {
        264: (0, 2), 296: (2, 4), 322: (9, 11), 330: (14, 16), 403: (5, 7), 462: (2, 5),
        558: (14, 17), 593: (9, 12), 617: (0, 5), 2954: (5, 8), 3408: (8, 12), 3646: (12, 14),
        27271: (12, 17), 34680: (5, 12),
    }  # fmt: skip

    def place(first, end, level):
        x, y = 0.19 + first * step + 0.04, 0.2 + level * 0.74
        return x, y, (end - first) * step - 0.08

    pieces = list(letters)
    for token_id, (first, end) in merges.items():
        parts = [piece for piece in pieces if first <= piece[0] and piece[1] <= end]
        level = 1 + max(part[2] for part in parts)
        x, y, width = place(first, end, level)
        for part in parts:
            part_x, part_y, part_width = place(*part)
            middle = part_x + part_width / 2
            ax.plot([middle, middle], [part_y + height, y], color=INK, linewidth=0.8)
            pieces.remove(part)
        pieces.append((first, end, level))
        is_token = token_id in (617, 34680, 27271)
        text = f"{word[first:end]}\n{token_id}"
        box(ax, x, y, width, height, text, ORANGE if is_token else BLUE, size=8.5)
    for i, letter in enumerate(word):
        x, y, width = place(*letters[i])
        box(ax, x, y, width, height, letter, GREY)
    return fig


def sliding_window():
    """A window over the story: its targets are the same window one token further on."""
    fig, ax = canvas(9.4, 4.5)
    words = ["␣and", "␣established", "␣himself", "␣in", "␣a", "␣vill", "a", "␣on"]
    ids = [290, 4920, 2241, 287, 257, 4489, 64, 319]
    width, left = 1.0, 1.1
    cells(ax, left, 4.35, [words, ids], width=width, height=0.34, size=8.5)
    label(ax, left - 0.1, 4.18, "tokens", ha="right", weight="bold")
    label(ax, left - 0.1, 3.84, "ids", ha="right", weight="bold")
    for y, name, first, color in [(3.45, "input x", 0, BLUE), (2.9, "target y", 1, ORANGE)]:
        label(ax, left - 0.1, y - 0.18, name, ha="right", weight="bold")
        window = words[first : first + 4]
        cells(ax, left + first * width, y, [window], [[color] * 4], width=width, height=0.36)
    label(ax, left, 2.2, "The window holds four predictions:", ha="left", weight="bold")
    for n in range(1, 5):
        y = 2.0 - 0.45 * (n - 1)
        cells(ax, left, y, [words[:n]], [[BLUE] * n], width=width, height=0.34)
        arrow(ax, (left + 4.1 * width, y - 0.17), (left + 4.7 * width, y - 0.17))
        cells(ax, left + 4.8 * width, y, [[words[n]]], [[ORANGE]], width=1.1, height=0.34)
    return fig


def stride():
    """Four strides with windows of four tokens: overlap, no overlap, gap."""
    fig, ax = canvas(9.4, 4.3)
    width, height, tokens = 0.33, 0.24, 12
    comments = {
        1: "each token is in up to four windows",
        2: "each token is in up to two windows",
        4: "each token is in one window",
        6: "two of six tokens are never an input",
    }
    for panel, (step, comment) in enumerate(comments.items()):
        left, top = 0.35 + 4.75 * (panel % 2), 4.15 - 2.4 * (panel // 2)
        name = f"stride = {step}" + (" = max_length" if step == 4 else "")
        label(ax, left, top - 0.05, name, ha="left", weight="bold")
        label(ax, left + width * tokens, top - 0.05, comment, ha="right", size=8.5)
        starts = range(0, tokens - 3, step)[:5]
        read = {i for start in starts for i in range(start, start + 4)}
        colors = [GREY if i in read or step < 4 else RED for i in range(tokens)]
        row = [f"$t_{{{i}}}$" for i in range(tokens)]
        cells(ax, left, top - 0.25, [row], [colors], width=width, height=0.3)
        label(ax, left + width * tokens + 0.15, top - 0.42, "…")
        for number, start in enumerate(starts):
            y = top - 0.65 - 0.28 * number
            color = BLUE if number % 2 == 0 else GREEN
            cells(ax, left + start * width, y, [row[start : start + 4]], [[color] * 4],
                  width=width, height=height, size=8)  # fmt: skip
        if step == 1:
            label(ax, left + 9.5 * width, y - 0.12, "… and so on")
    return fig


if __name__ == "__main__":
    main()
