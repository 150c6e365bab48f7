"""Boxes, arrows and grids for the notebooks' diagrams, drawn with matplotlib and saved as SVG.

Each ``tools/figures/chNN.py`` draws the diagrams of one chapter: ``python tools/figures/ch02.py``.
The same code gives the same file, byte for byte, so that a changed diagram shows up in git.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[2]

# A small palette that stays readable in grey and for colour-blind readers
BLUE, ORANGE, GREEN, PURPLE = "#cfe3f7", "#fde3c2", "#d5eed5", "#e6dcf3"
GREY, RED, WHITE, INK = "#ececec", "#f7cfcf", "#ffffff", "#22303c"

plt.rcParams.update(
    {
        "svg.hashsalt": "llms-from-scratch",  # the same ids in each run
        "font.family": "DejaVu Sans",  # comes with matplotlib
        "text.color": INK,
    }
)


def canvas(width: float, height: float):
    """A figure of that many inches whose coordinates are inches too, y upwards."""
    fig, ax = plt.subplots(figsize=(width, height))
    ax.set_xlim(0, width)
    ax.set_ylim(0, height)
    ax.set_position([0, 0, 1, 1])
    ax.axis("off")
    return fig, ax


def box(ax, x, y, width, height, text="", color=BLUE, size=10, **text_options):
    """A rounded box with its lower left corner at (x, y) and centred text."""
    ax.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=color,
            edgecolor=INK,
            linewidth=1,
        )
    )
    label(ax, x + width / 2, y + height / 2, text, size=size, **text_options)


def label(ax, x, y, text, size=10, ha="center", va="center", **options):
    ax.text(x, y, text, fontsize=size, ha=ha, va=va, **options)


def arrow(ax, start, end, color=INK, curve=0.0, style="-|>", **options):
    """An arrow between two points; ``curve`` bends it."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle=style,
            mutation_scale=12,
            color=color,
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={curve}",
            linewidth=1.2,
            **options,
        )
    )


def cells(ax, x, y, rows, colors=None, width=0.55, height=0.4, size=9):
    """A table with its upper left corner at (x, y); ``rows`` holds texts, ``colors`` per cell."""
    for i, row in enumerate(rows):
        for j, text in enumerate(row):
            color = colors[i][j] if colors else WHITE
            left, bottom = x + j * width, y - (i + 1) * height
            ax.add_patch(
                plt.Rectangle(
                    (left, bottom), width, height, facecolor=color, edgecolor=INK, linewidth=0.8
                )
            )
            label(ax, left + width / 2, bottom + height / 2, str(text), size=size)


def save(fig, relative_path: str) -> None:
    """Write ``relative_path`` (from the repository's root, ending in .svg)."""
    path = ROOT / relative_path
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")
    plt.close(fig)


def save_all(folder: str, *drawings: Callable) -> None:
    """Write what each function draws into ``folder``, in a file with the function's name."""
    for draw in drawings:
        save(draw(), f"{folder}/{draw.__name__.replace('_', '-')}.svg")
