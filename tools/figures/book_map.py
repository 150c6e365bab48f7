"""Where a chapter stands in the whole book: ``python tools/figures/book_map.py ch06 ch07``.

One drawing for all chapters; without an argument it is written for each chapter that has a folder
of figures.
"""

import argparse

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from drawing import BLUE, GREEN, GREY, ORANGE, ROOT, WHITE, arrow, box, canvas, label, save

STAGES = (  # title, color, chapters with what they add
    (
        "1. Build the model",
        BLUE,
        ((2, "text to\ntoken ids"), (3, "attention"), (4, "the GPT")),
    ),
    ("2. Teach it to write", GREEN, ((5, "pretraining,\nweights of GPT-2"),)),
    (
        "3. Give it a task",
        ORANGE,
        ((6, "classifier:\nspam or not"), (7, "assistant: obeys\ninstructions")),
    ),
)
CHAPTERS = tuple(chapter for *_, steps in STAGES for chapter, _ in steps)


def book_map(chapter: int):
    """The three stages of the book; the chapter's box is coloured and has a thick frame."""
    fig, ax = canvas(7.9, 1.75)
    left, width, gap = 0.1, 1.12, 0.1
    for number, (title, color, steps) in enumerate(STAGES):
        total = len(steps) * (width + gap) - gap
        ax.plot([left, left + total], [1.32, 1.32], color="#22303c", lw=1)
        size = 10 if len(steps) > 1 else 8.5
        label(ax, left + total / 2, 1.52, title, size=size, weight="bold")
        for step, (which, text) in enumerate(steps):
            here = which == chapter
            x = left + step * (width + gap)
            done = GREY if which < chapter else WHITE
            box(ax, x, 0.4, width, 0.75, "", color if here else done)
            label(ax, x + width / 2, 0.98, f"chapter {which}", size=8, weight="bold")
            label(ax, x + width / 2, 0.67, text, size=8)
            if here:
                ax.patches[-1].set_linewidth(2.6)
                label(ax, x + width / 2, 0.17, "you are here", size=9, weight="bold")
                arrow(ax, (x + width / 2, 0.25), (x + width / 2, 0.39))
        left += total + gap
        if number < len(STAGES) - 1:
            arrow(ax, (left - 0.02, 0.77), (left + 0.14, 0.77))
            left += 0.16
    return fig


def folder_of(chapter: int) -> str:
    return f"ch{chapter:02}/01_main-chapter-code/figures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapters", nargs="*", help="ch02 ... ch07 (default: those with figures)")
    wanted = [int(name.removeprefix("ch")) for name in parser.parse_args().chapters]
    for chapter in wanted or CHAPTERS:
        if chapter not in CHAPTERS:
            parser.error(f"the drawing has the chapters {CHAPTERS}, not {chapter}")
        if wanted or (ROOT / folder_of(chapter)).is_dir():
            save(book_map(chapter), f"{folder_of(chapter)}/where-are-we.svg")


if __name__ == "__main__":
    main()
