"""``llms-from-scratch plan``: memory and time of a training run, before one starts it."""

import argparse
import json
from pathlib import Path

MODELS = ("gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl")


def add_plan(commands) -> None:
    plan = commands.add_parser("plan", help="memory and time that training a GPT will take")
    add = plan.add_argument
    add(
        "--model",
        default="gpt2-small",
        help=f"{', '.join(MODELS)}, or a settings.json with a config (default: gpt2-small)",
    )
    add("--batch_size", type=int, default=8, help="rows of all processes together (default: 8)")
    add("--context_length", type=int, help="tokens of a row (default: the model's)")
    add("--parallel", choices=("ddp", "fsdp"), help="how processes share the work")
    add("--ranks", type=int, default=1, help="processes (default: 1)")
    add("--dtype", choices=("float32", "bf16"), default="float32", help="default: float32")
    add("--activation_checkpointing", action="store_true", help="as in gpt_train.py")
    add("--accumulate", type=int, default=1, help="batches for one update (default: 1)")
    add("--tokens", type=float, default=1e9, help="to train on, such as 10e9 (default: 1e9)")
    add("--tokens_per_second", type=float, help="measured speed of all processes together")
    add("--tflops", type=float, help="or the TFLOP/s that each process reaches")
    plan.set_defaults(run=plan_command)


def plan_command(args: argparse.Namespace) -> int:
    """Print a table of memory for one process, and the time."""
    from llms_from_scratch.training.plan import PlannedRun, count_parameters, memory, peak

    _check_numbers(args)
    cfg = _config_of(args.model)
    if args.context_length:
        cfg = cfg | {"context_length": args.context_length}
    run = PlannedRun(
        cfg,
        args.batch_size,
        args.parallel,
        args.ranks,
        args.dtype,
        args.activation_checkpointing,
        args.accumulate,
    )
    sharing = f", {args.parallel} on {args.ranks} processes" if args.parallel else ""
    print(
        f"{args.model}: {count_parameters(cfg)[0]:,} parameters; {args.batch_size} rows of "
        f"{cfg['context_length']} tokens, {args.dtype}{sharing}"
    )
    print("\nMemory of each process")
    for purpose, size in memory(run).items():
        print(f"  {purpose:<16} {size / 1e9:9.3f} GB")
    print(f"  {'at most':<16} {peak(run) / 1e9:9.3f} GB (gradients come while activations go)")
    _print_time(run, args)
    return 0


def _print_time(run, args: argparse.Namespace) -> None:
    from llms_from_scratch.training.plan import flops_per_token, hours

    print(f"\nArithmetic\n  {flops_per_token(run) / 1e9:.3f} GFLOP for each token")
    if args.tokens_per_second or args.tflops:
        speed = {"tokens_per_second": args.tokens_per_second, "tflops": args.tflops}
        print(f"  {hours(run, args.tokens, **speed):,.1f} hours for {args.tokens:,.0f} tokens")
    else:
        print("  for the time, add --tokens_per_second or --tflops: what your machine reaches")


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("context_length", "accumulate", "tokens", "tokens_per_second", "tflops"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} must be above 0, got {value}")


def _config_of(model: str) -> dict:
    from llms_from_scratch.ch04 import GPT_CONFIG_124M, check_config, model_configs

    sizes = {name.split()[0]: config for name, config in model_configs.items()}
    if model in sizes:
        return GPT_CONFIG_124M | sizes[model]
    if not Path(model).is_file():
        raise ValueError(
            f"--model {model} is neither one of {', '.join(MODELS)} nor a settings.json that exists"
        )
    try:
        config = json.loads(Path(model).read_text(encoding="utf-8"))["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{model} is no JSON with a "config" of a GPT ({error})') from None
    check_config(config)
    return config
