"""``llms-from-scratch serve``: its arguments; nothing heavy is imported before the command runs."""

import argparse
import os

KEY_VARIABLE = "LLMS_FROM_SCRATCH_API_KEY"
DEFAULT_PORT = 11434  # Ollama's, so that what was written for it finds this server


def add_serve(commands) -> None:
    serve = commands.add_parser(
        "serve", help="a model as a local server with Ollama's and OpenAI's protocols"
    )
    serve.add_argument("model", help="its folder or file, or a name such as smollm2-135m-instruct")
    serve.add_argument("--host", default="127.0.0.1", help="address (default: this machine alone)")
    serve.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"default: {DEFAULT_PORT}")
    serve.add_argument(
        "--alias", action="append", default=[], metavar="NAME", help="another name for the model"
    )
    serve.add_argument("--slots", type=int, default=16, help="answers at a time (default: 16)")
    serve.add_argument(
        "--queue", type=int, default=64, help="requests that may wait besides (default: 64)"
    )
    serve.add_argument(
        "--max-new-tokens", type=int, help="of one answer (default: until the context is full)"
    )
    serve.add_argument(
        "--prompt-style",
        choices=("alpaca", "phi3"),
        help="(default: the one it was finetuned with)",
    )
    serve.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    serve.add_argument("--api-key", help=f"that requests must carry; better in {KEY_VARIABLE}")
    serve.add_argument(
        "--host-name",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which other machines reach this one",
    )
    serve.set_defaults(run=serve_model)


def serve_model(args: argparse.Namespace) -> int:
    """Load a model, listen, and serve it until Ctrl-C."""
    for name, value in (
        ("slots", args.slots),
        ("queue", args.queue),
        ("max-new-tokens", args.max_new_tokens),
    ):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    try:
        from llms_from_scratch.serving.server import Server, greeting, listen, make_app, make_engine
    except ImportError as error:
        raise ValueError(
            f"the server needs {error.name}: pip install fastapi uvicorn, "
            'or pip install "llms-from-scratch[serve]"'
        ) from None
    from llms_from_scratch.app.script_tools import pick_device
    from llms_from_scratch.serving.requests import Service
    from llms_from_scratch.serving.speaking import load_speaker

    device = pick_device(args.device)
    key = args.api_key or os.environ.get(KEY_VARIABLE)
    with listen(args.host, args.port) as listening:  # before the model is loaded: that takes longer
        speaker = load_speaker(args.model, args.prompt_style, device)
        engine = make_engine(speaker, args.slots, args.queue)
        service = Service(speaker, engine, args.alias, args.max_new_tokens)
        app = make_app(service, host_names=(args.host, *args.host_name), api_key=key)
        print(greeting(service, args.host, listening.getsockname()[1], key), flush=True)
        engine.start()
        try:
            Server(app, engine, log_level="warning").run(sockets=[listening])
        finally:
            engine.stop()
    return 0
