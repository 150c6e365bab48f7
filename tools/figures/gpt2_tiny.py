"""The loss curve in gpt2-tiny's model card, from the losses logged while it was trained."""

import csv

from drawing import ROOT, plt, save

FOLDER = "ch05/03_bonus_pretraining_on_gutenberg"


def main() -> None:
    with (ROOT / FOLDER / "gpt2-tiny-losses.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "1"]
    tokens = [int(row["tokens_seen"]) / 1e6 for row in rows]
    fig, ax = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
    ax.plot(tokens, [float(row["train_loss"]) for row in rows], label="training")
    ax.plot(tokens, [float(row["val_loss"]) for row in rows], "-.", label="held-out text")
    ax.set(xlabel="million tokens seen", ylabel="loss (nats per token)", ylim=(3, 8))
    ax.legend()
    save(fig, f"{FOLDER}/figures/gpt2-tiny-losses.svg")


if __name__ == "__main__":
    main()
