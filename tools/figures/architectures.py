"""Block diagrams from GPT-2 to Olmo 3: ``python tools/figures/architectures.py`` writes them.

Every model is a column of the same places, from the token ids at the bottom to the logits at the
top; a place that a model does not use stays empty. What differs from the model before in more than
its size has a thick border.
"""

import importlib.util
import re

from drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, ROOT, arrow, box, canvas, label, save
from matplotlib.patches import FancyBboxPatch


def load_table():
    """``tools/what_changed.py``, which knows the models and reads their properties."""
    path = ROOT / "tools" / "what_changed.py"
    spec = importlib.util.spec_from_file_location("table_of_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


table = load_table()
MODELS = table.MODELS[:7]  # what is new after Olmo 3 is drawn by newer_blocks.py

COLUMN, BOX = 2.75, 2.05  # inches
HEIGHT = 7.75
# The lower edge and height of each place
PLACES = {
    "embedding": (0.55, 0.42),
    "norm before attention": (1.5, 0.28),
    "attention": (1.9, 1.16),
    "norm after attention": (3.18, 0.28),
    "norm before feed-forward": (3.98, 0.28),
    "feed-forward": (4.38, 0.42),
    "norm after feed-forward": (4.92, 0.28),
    "final norm": (5.95, 0.28),
    "output layer": (6.45, 0.42),
}
COLORS = {"embedding": GREY, "attention": BLUE, "feed-forward": GREEN, "output layer": GREY}


def main() -> None:
    by_name = {model.name: model for model in MODELS}
    folder = "ch05/what-changed/figures"
    save(side_by_side(MODELS[:4]), f"{folder}/gpt2-to-qwen3.svg")
    save(side_by_side(MODELS[4:], MODELS[3]), f"{folder}/qwen3-moe-to-olmo3.svg")
    qwen, gemma, olmo = (by_name[n] for n in ("Qwen3 0.6B", "Gemma 3 270M", "Olmo 3 7B"))
    save(side_by_side([qwen, gemma], qwen), "ch05/12_gemma3/figures/qwen3-and-gemma3.svg")
    save(side_by_side([gemma, olmo], gemma), "ch05/13_olmo3/figures/gemma3-and-olmo3.svg")


def side_by_side(models, predecessor=None):
    """A column for each model; ``predecessor`` is what the first one is compared with."""
    fig, ax = canvas(COLUMN * len(models) + 0.1, HEIGHT)
    for i, model in enumerate(models):
        before = models[i - 1] if i else predecessor
        old = parts_of(before) if before else None
        draw(ax, i * COLUMN + 0.1, model, parts_of(model), old)
    return fig


def parts_of(model) -> dict[str, str]:
    """What stands in each place of a model."""
    place, norm = (
        table.place_of_norm(model),
        table.norm_of(model).replace("by 1 + weight", "1 + weight"),
    )
    positions = table.positions_of(model)
    added = positions.startswith("learned")
    embedding = "token embedding"
    embedding += "\n+ position embedding" if added else ""
    embedding += " × √emb_dim" if model.name.startswith("Gemma") else ""
    parts = {
        "embedding": embedding,
        "attention": attention_text(model, "" if added else positions),
        "feed-forward": table.feed_forward_of(model).replace(", ", "\n"),
        "final norm": norm,
        "output layer": "output layer" + ("\n(the embedding)" if model.tied else ""),
    }
    for sublayer in ("attention", "feed-forward"):
        for side in ("before", "after"):
            if side in place:
                parts[f"norm {side} {sublayer}"] = norm
    return parts


def attention_text(model, positions: str) -> str:
    lines = [f"attention, {model.cfg['n_heads']} heads of {model.head_dim}"]
    if model.kv_heads != model.cfg["n_heads"]:
        heads = "head" if model.kv_heads == 1 else "heads"
        lines.append(f"{model.kv_heads} {heads} of keys and values")
    query_key_norm = table.query_key_norm_of(model)
    if query_key_norm != "no":
        lines.append(f"q, k normalized {query_key_norm}")
    lines += positions.split("; ") if positions else []
    window = table.window_of(model)
    return "\n".join(lines + ([f"window {window}"] if window != "none" else []))


def draw(ax, left: float, model, parts: dict[str, str], old: dict[str, str] | None) -> None:
    """One model, its lower left corner at (left, 0)."""
    middle = left + 0.22 + BOX / 2
    label(ax, middle, HEIGHT - 0.2, model.name, size=11, weight="bold")
    label(ax, middle, 0.14, "token ids", size=9)
    label(ax, middle, 7.22, "logits", size=9)
    frame(ax, left, 1.3, 2.5, 4.28)
    label(ax, left + 2.42, 5.7, f"× {model.cfg['n_layers']}", size=9, ha="right")
    arrow(ax, (middle, 0.24), (middle, PLACES["embedding"][0]))
    ax.plot([middle, middle], [0.97, 6.87], color=INK, linewidth=1.2, zorder=0)
    arrow(ax, (middle, 6.87), (middle, 7.12))
    for start, end in ((1.4, 3.65), (3.86, 5.39)):
        shortcut(ax, left + 0.1, middle, start, end)
    for place, text in parts.items():
        y, height = PLACES[place]
        is_new = old is not None and without_numbers(old.get(place, "")) != without_numbers(text)
        color = ORANGE if "norm" in place else COLORS[place]
        box(ax, left + 0.22, y, BOX, height, text, color, size=7.6)
        if is_new:
            ax.patches[-1].set_linewidth(2.8)
            ax.texts[-1].set_weight("bold")
            ax.texts[-1].set_fontsize(7.2)


def without_numbers(text: str) -> str:
    """What is compared: another size alone is nothing new."""
    return re.sub(r"[\d,.]+", "", text)


def frame(ax, x, y, width, height) -> None:
    """What is repeated."""
    style = "round,pad=0,rounding_size=0.1"
    patch = FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor="none")
    patch.set(edgecolor=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.add_patch(patch)


def shortcut(ax, x: float, middle: float, start: float, end: float) -> None:
    """The stream's way around a sublayer, to the sign where its result is added."""
    ax.plot([middle, x, x, middle - 0.1], [start, start, end, end], color=INK, linewidth=1.2)
    circle = FancyBboxPatch((middle - 0.09, end - 0.09), 0.18, 0.18, boxstyle="circle,pad=0")
    circle.set(facecolor=PURPLE, edgecolor=INK, linewidth=1)
    ax.add_patch(circle)
    label(ax, middle, end, "+", size=9)


if __name__ == "__main__":
    main()
