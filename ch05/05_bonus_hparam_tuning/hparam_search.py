"""Search for the settings with which a GPT learns a text best.

Examples:
    python hparam_search.py --preset tiny                  # a small GPT, 12 configurations
    python hparam_search.py --trials 200 --workers 4       # 200 of the 12,960, on a GPU or two
    python hparam_search.py --sampler grid --trials 12960  # all of them: days

The same command goes on with a search that was stopped, in whatever way; a second one, started
beside the first with the same --out, helps it. Needs the extra "tuning".
"""

import argparse
import hashlib
import multiprocessing
import shutil
import warnings
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import optuna
from matplotlib import pyplot as plt
from tqdm import tqdm

from llms_from_scratch.app.script_tools import pick_device, short_errors, writable_folder
from llms_from_scratch.data import load_text
from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.tuning import (
    HPARAM_GRID,
    Search,
    Texts,
    gpt_train_settings,
    loader_of,
    loss_on,
    num_configurations,
    train_configuration,
    write_json,
)

GPT_CONFIG_124M = {
    "vocab_size": 50257,
    "context_length": 256,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,  # the grid's takes its place
    "qkv_bias": False,
}
TINY_GRID = HPARAM_GRID | {
    "batch_size": [4, 8],
    "warmup_iters": [5],
    "weight_decay": [0.1, 0.0],
    "peak_lr": [0.0005, 0.002, 0.005],
    "initial_lr": [0.0001],
    "min_lr": [0.00001],
    "n_epochs": [2, 4],
}
PRESETS = {  # model, grid, configurations
    "book": (GPT_CONFIG_124M, HPARAM_GRID, 100),
    "tiny": (
        GPT_CONFIG_124M | {"context_length": 64, "emb_dim": 64, "n_heads": 4, "n_layers": 2},
        TINY_GRID,
        12,
    ),
}
PLOTS = ("history", "importances", "parallel-coordinates")


def main(args: argparse.Namespace) -> None:
    model_config, grid, num_trials = PRESETS[args.preset]
    num_trials = args.trials or num_trials
    folder = Path(
        args.out or ("runs/hparam_search" if args.preset == "book" else "runs/hparam_tiny")
    )
    if args.overwrite and folder.is_dir():
        shutil.rmtree(folder)
    writable_folder(folder)
    search_in(folder, args, grid, model_config)  # says at once what cannot work
    print(f"{num_trials} of {num_configurations(grid):,} configurations, {args.sampler}, {folder}")
    helpers = [
        multiprocessing.get_context("spawn").Process(target=work, args=(folder, args, num_trials))
        for _ in range(args.workers - 1)
    ]
    try:
        for helper in helpers:
            helper.start()
        work(folder, args, num_trials, show_progress=True)
        for helper in helpers:
            helper.join()
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on.")
        raise
    finally:
        for helper in helpers:
            helper.terminate()
    report(folder, args, grid, model_config)


def search_in(folder: Path, args, grid: dict, model_config: dict) -> Search:
    text = load_text(args.data)
    identity = {"model": model_config, "text": hashlib.sha256(text.encode()).hexdigest()}
    return Search(folder, grid, args.sampler, args.pruner, identity=identity)


def work(folder: Path, args, num_trials: int, show_progress: bool = False) -> None:
    """One worker: configurations, one after the other, until there are enough of them."""
    model_config, grid, _ = PRESETS[args.preset]
    search, texts = search_in(folder, args, grid, model_config), Texts.split(load_text(args.data))
    device = pick_device(args.device)

    def objective(configuration: dict, trial: optuna.trial.Trial) -> float:
        def on_epoch(epoch: int, val_loss: float) -> None:
            trial.report(val_loss, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        _, train_loss, val_loss = train_configuration(
            configuration, texts, model_config, device, on_epoch=on_epoch
        )
        trial.set_user_attr("train_loss", train_loss)
        return val_loss

    with tqdm(total=num_trials, unit="trial", disable=not show_progress) as bar:
        bar.update(len(search.finished()))
        search.run(objective, num_trials, lambda done: bar.update(done - bar.n))


def report(folder: Path, args, grid: dict, model_config: dict) -> None:
    """Write the table of trials, the plots and the best configuration, with its loss on the test
    text: the only time that this text is used."""
    search, texts = search_in(folder, args, grid, model_config), Texts.split(load_text(args.data))
    with atomic_write(folder / "trials.csv") as temporary:
        search.study.trials_dataframe().to_csv(temporary, index=False)
    draw(search.study, folder, grid)
    best, device = search.best(), pick_device(args.device)
    model, train_loss, val_loss = train_configuration(best.params, texts, model_config, device)
    test_loader = loader_of(texts.test, best.params["batch_size"], model_config["context_length"])
    losses = {
        "training_loss": train_loss,
        "validation_loss": val_loss,
        "test_loss": loss_on(test_loader, model, device),
    }
    write_json(folder / "best.json", gpt_train_settings(best.params, model_config) | losses)
    pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in search.finished())
    print(f"{len(search.finished())} configurations, {pruned} of them given up early")
    for name, value in best.params.items():
        print(f"  {name:<14} {value}")
    print(", ".join(f"{name.replace('_', ' ')} {loss:.3f}" for name, loss in losses.items()))
    print(f"{folder / 'best.json'} can be given to gpt_train.py --settings")


def draw(study: optuna.Study, folder: Path, grid: dict) -> None:
    """History, importance of each hyperparameter, and all configurations side by side.

    Hyperparameters with a single value are left out: they explain nothing.
    """
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as visualization

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    varied = [name for name, values in grid.items() if len(values) > 1]
    name = {"target_name": "Validation loss"}
    drawings = (
        lambda: visualization.plot_optimization_history(study, **name),
        lambda: visualization.plot_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), params=varied, **name
        ),
        lambda: visualization.plot_parallel_coordinate(study, params=varied, **name),
    )
    trained = len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
    titles = (
        f"{trained} configurations trained to the end",
        f"What tells the best of {trained} configurations from the others",
        "Each line is a configuration; dark ones are good",
    )
    for plot, drawing, title in zip(PLOTS, drawings, titles, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls these plots experimental
            axes = drawing()
        make_readable(axes, title)
        axes.figure.savefig(folder / f"{plot}.png", bbox_inches="tight")
        plt.close("all")


def make_readable(axes, title: str) -> None:
    """Numbers on white, no lines through them, and a legend only where it tells things apart."""
    figure = axes.figure
    figure.set_size_inches(9, 4.5)
    axes.set_title("", loc="left")
    axes.set_title(title)
    for part in figure.axes:
        part.grid(False)
        for label in part.get_yticklabels() if len(figure.axes) > 2 else []:
            label.set_bbox({"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1})
    legend = axes.get_legend()
    if legend is not None and len(legend.get_texts()) == 1:
        legend.remove()


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="book", help="model and grid (default: book)"
    )
    parser.add_argument(
        "--data", default="the-verdict", help="a UTF-8 text file, or a known text's name"
    )
    parser.add_argument(
        "--sampler", choices=("grid", "random", "tpe"), default="tpe", help="(default: tpe)"
    )
    parser.add_argument(
        "--pruner", choices=("median", "none"), default="median", help="(default: median)"
    )
    parser.add_argument(
        "--trials", type=int, help="configurations to try (default: 100, or 12 with tiny)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--out", help="folder of the search (default: runs/hparam_search)")
    parser.add_argument("--overwrite", action="store_true", help="forget the search in --out")
    args = parser.parse_args()
    for name in ("trials", "workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return parser, args


if __name__ == "__main__":
    parser, args = parse_args()
    plt.switch_backend("agg")  # plots go to files only
    with short_errors(parser):
        main(args)
