"""A pretrained model on every machine: by name, from a folder, a file or the hub."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch

from llms_from_scratch.ch04 import BASE_CONFIG, GPTModel, model_configs
from llms_from_scratch.data import DownloadError, cache_dir, fetch
from llms_from_scratch.data.manifest import GPT2_SIZES, OPENAI_FILES
from llms_from_scratch.saving import GPT_CLASSES, new_model, read_settings
from llms_from_scratch.tokenizer import END_OF_TEXT, get_tokenizer
from llms_from_scratch.weights.architectures import ARCHITECTURES, model_from_config
from llms_from_scratch.weights.chat_formats import (
    HubTokenizer,
    TurnFormat,
    find_chat_format,
    special_tokens_of,
)
from llms_from_scratch.weights.gguf import GGUFFile
from llms_from_scratch.weights.gguf_models import (
    config_from_gguf,
    source_from_gguf,
    tokenizer_from_gguf,
)
from llms_from_scratch.weights.gpt2 import (
    from_openai,
    load_gpt2,
    load_gpt2_params_from_tf_ckpt,
)
from llms_from_scratch.weights.hub import download_model, from_hub_folder, read_json
from llms_from_scratch.weights.hub_configs import config_from_hub_dict
from llms_from_scratch.weights.mapping import load_by_names
from llms_from_scratch.weights.saved_tokenizers import read_tokenizer
from llms_from_scratch.weights.sources import TensorSource, from_pth, from_safetensors

BUNDLED_NAME = "gpt2-tiny"
BUNDLED = Path(__file__).parent.parent / "data" / BUNDLED_NAME
SAVED_TYPES = {  # the class of a model: its type on the hub
    "Llama2Model": "llama",
    "Llama3Model": "llama",
    "Qwen3Model": "qwen3",
    "Gemma3Model": "gemma3_text",
    "Olmo3Model": "olmo3",
    "TinyAyaModel": "cohere2",
    "Gemma4DenseModel": "gemma4_text",
    "Qwen3_5Model": "qwen3_5_text",
}
GGUF_MODELS = ("smollm2-135m-instruct", "gemma3-270m")  # assets that packages of the index have


@dataclass
class Pretrained:
    """A model in evaluation mode, and what belongs to it.

    ``eos_ids`` end a text, ``pad_id`` fills up a batch. ``chat`` knows how the model is spoken to;
    None for a model that only goes on with a text. ``tokenizer`` is None if nobody knows it.
    """

    name: str  # "gpt2-small (124M)", ..., "gpt2-tiny", "smollm2-135m-instruct", or a path
    config: dict
    model: torch.nn.Module
    model_type: str = "gpt2"
    eos_ids: frozenset[int] = frozenset()
    template: str = ""  # the chat template that came with it, as a text
    make_tokenizer: Callable[[], object | None] = field(default=lambda: None, repr=False)

    @cached_property
    def tokenizer(self):
        return self.make_tokenizer()

    @cached_property
    def chat(self) -> TurnFormat | None:
        return find_chat_format(self.tokenizer, self.model_type, self.template)

    @property
    def stop_ids(self) -> frozenset[int]:
        """All ids that end what the model writes."""
        return self.eos_ids | (self.chat.stop_ids if self.chat else frozenset())

    @cached_property
    def pad_id(self) -> int:
        """An id for padding; what it is makes no difference, for padding is never looked at."""
        special = special_tokens_of(self.tokenizer) if self.tokenizer else {}
        marks = ("<|pad|>", "<pad>", END_OF_TEXT)
        found = next((special[mark] for mark in marks if mark in special), None)
        return min(self.eos_ids, default=0) if found is None else found


def choose_pretrained(
    wanted: str = "gpt2-small (124M)", model_class: type = GPTModel
) -> Pretrained:
    """Load the wanted GPT-2 if it is cached or can be downloaded, else the bundled ``gpt2-tiny``.

    One printed line says which it is. See ``load_pretrained`` for what ``wanted`` may be; nothing
    takes the place of a path that does not exist.
    """
    try:
        chosen = load_pretrained(wanted, model_class)
        print(f"Model: {chosen.name}")
    except DownloadError:
        if wanted not in model_configs:
            raise
        chosen = load_pretrained(BUNDLED_NAME, model_class)
        print(
            f"Model: {BUNDLED_NAME}, which comes with this package, because {wanted} could not be "
            "downloaded. It writes worse, and its numbers differ from the book's."
        )
    return chosen


def choose_strongest(*wanted: str) -> Pretrained:
    """Load the first of these models that can be had here; the bundled ``gpt2-tiny`` always can.

    One printed line says which it is, and why not one before it. Names as for ``load_pretrained``.
    """
    missing = []
    for name in (*wanted, BUNDLED_NAME):
        try:
            chosen = load_pretrained(name)
        except DownloadError:
            missing.append(name)
            continue
        reason = f" ({' and '.join(missing)} could not be had)" if missing else ""
        print(f"Model: {chosen.name}{reason}")
        return chosen
    raise AssertionError("the bundled model is always here")


def load_pretrained(wanted: str | Path, model_class: type = GPTModel) -> Pretrained:
    """Load one particular model: by name, from a path, or from the hub.

    Names: a key of ``model_configs``, ``"gpt2-tiny"``, ``"smollm2-135m-instruct"``,
    ``"gemma3-270m"``, or a repository of the Hugging Face hub such as ``"Qwen/Qwen3-0.6B"``, which
    is downloaded once.

    A path is a folder as on the hub (``config.json``, one or more ``.safetensors``), with OpenAI's
    checkpoint (``hparams.json``, ``model.ckpt.*``), or as ``gpt_train.py`` and chapter 7 write it
    (``settings.json``, ``model.pth``); or a single file: ``.gguf``, or ``.safetensors`` or ``.pth``
    with the configuration beside it, or without one for GPT-2 of a usual size.

    ``model_class`` is the class of a GPT-2; other architectures have one each. Raises
    ``DownloadError`` if a download fails, and ``FileNotFoundError`` or ``ValueError`` for a path
    that holds no model that we compute.
    """
    if wanted in model_configs:
        config = BASE_CONFIG | model_configs[wanted]
        hub_name = GPT2_SIZES[_size_in(wanted)]
        path = fetch(f"{hub_name}/model.safetensors", allow_sample=False)
        return _gpt2(wanted, config, from_safetensors(path), model_class)
    if wanted in GGUF_MODELS:
        return _from_gguf(wanted, fetch(f"{wanted}/model.gguf", allow_sample=False), model_class)
    path = BUNDLED if wanted == BUNDLED_NAME else Path(wanted)
    if not path.exists():
        path = _from_the_hub(wanted)
    if path.suffix == ".gguf" and path.is_file():
        return _from_gguf(str(wanted), path, model_class)
    return _from_folder(str(wanted), path, model_class)


def _from_the_hub(wanted: str | Path) -> Path:
    """The folder of a hub repository, downloaded if need be."""
    parts = str(wanted).split("/")
    if isinstance(wanted, Path) or len(parts) != 2 or not all(parts) or "." in parts:
        known = ", ".join([*model_configs, BUNDLED_NAME, *GGUF_MODELS])
        raise FileNotFoundError(
            f"{wanted} is neither a known model ({known}) nor a path that exists, nor a "
            "repository of the hub, OWNER/NAME"
        )
    return download_model(wanted, cache_dir() / "hub" / "--".join(parts))


def _from_gguf(name: str, path: Path, model_class: type) -> Pretrained:
    file = GGUFFile(path)
    model_type, config = config_from_gguf(file)
    source = source_from_gguf(file, model_type, config)
    if model_type == "gpt2":
        model = model_class(config).eval()
        load_gpt2(model, source)
    else:
        model = model_from_config(model_type, config, source)
    eos = file.metadata.get("tokenizer.ggml.eos_token_id")
    return Pretrained(
        name,
        config,
        model,
        model_type,
        frozenset() if eos is None else frozenset({eos}),
        file.metadata.get("tokenizer.chat_template", ""),
        lambda: tokenizer_from_gguf(file),
    )


def _from_folder(name: str, path: Path, model_class: type) -> Pretrained:
    folder = path.parent if path.is_file() else path
    if (folder / "config.json").is_file():
        theirs = read_json(folder / "config.json")
        where = str(folder / "config.json")
        model_type, config = config_from_hub_dict(theirs, where)
        if model_type != "gpt2":
            source = from_hub_folder(folder) if path.is_dir() else _open(path)
            return _modern(name, folder, theirs, model_type, config, source)
    else:
        settings = _settings_of_model(folder)
        if settings.get("model_class", "GPTModel") not in GPT_CLASSES:
            return _saved(name, folder, settings, _open(path))
        if settings and model_class is GPTModel:
            model_class = partial(new_model, settings)
        config = _config_in(folder)
    source = _open(path)
    return _gpt2(name, config or _usual_config(source), source, model_class, folder)


def _modern(name, folder, theirs, model_type, config, source) -> Pretrained:
    """A model of a hub folder that is no GPT-2."""
    eos = theirs.get("eos_token_id")
    generation = folder / "generation_config.json"
    if generation.is_file():
        eos = read_json(generation).get("eos_token_id", eos)
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    model = model_from_config(model_type, config, source)
    tokenizer = folder / "tokenizer.json"
    return Pretrained(
        name,
        config,
        model,
        model_type,
        frozenset(eos),
        _template_in(folder),
        lambda: HubTokenizer(tokenizer, END_OF_TEXT) if tokenizer.is_file() else None,
    )


def _settings_of_model(folder: Path) -> dict:
    """The settings that chapter 7 has saved, unless of a plain GPT, for which they are empty."""
    path = folder / "settings.json"
    if (folder / "hparams.json").is_file() or not path.is_file():
        return {}
    is_plain = not {"model_class", "dtype", "tied"} & read_json(path).keys()
    return {} if is_plain else read_settings(path, ("config",))


def _saved(name: str, folder: Path, settings: dict, source: TensorSource) -> Pretrained:
    """A model of chapter 7 that is no GPT-2, with the tokenizer that was saved beside it."""
    model_class, config = settings["model_class"], settings["config"]
    with torch.device("meta"):
        model = new_model(settings)
    model_type = SAVED_TYPES[model_class]
    if config.get("num_experts"):
        model_type = "qwen3_moe"
    # A copy, aligned in memory; also, the file may be replaced while the model is in use
    kept = TensorSource(source.description, source.shapes, lambda key: source.read(key).clone())
    load_by_names(model, kept, ARCHITECTURES[model_type].names_of(model))
    if model_class == "Llama2Model":  # a Llama 3 with a key for each query
        config = {"n_kv_groups": config["n_heads"], "rope_base": 10_000.0} | config
    return Pretrained(
        name,
        config,
        model.eval(),
        model_type,
        frozenset(settings.get("eos_ids", ())),
        settings.get("template", ""),
        lambda: _tokenizer_beside(folder, settings),
    )


def _tokenizer_beside(folder: Path, settings: dict):
    if "tokenizer" in settings:
        return read_tokenizer(folder / "tokenizer.json", settings["tokenizer"])
    return get_tokenizer("gpt2") if settings["config"]["vocab_size"] == 50257 else None


def _template_in(folder: Path) -> str:
    """The chat template of a hub folder, in one of the places where it may be."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "tokenizer_config.json").is_file():
        template = read_json(folder / "tokenizer_config.json").get("chat_template") or ""
        return template if isinstance(template, str) else json.dumps(template)
    return ""


def _open(path: Path) -> TensorSource:
    """The weights in a file or folder, whatever their format."""
    names = ("model.safetensors", "model.ckpt.index", "model.pth")
    for candidate in [path] if path.is_file() else [path / name for name in names]:
        if not candidate.is_file():
            continue
        if candidate.suffix == ".safetensors":
            return from_safetensors(candidate)
        if candidate.name == "model.ckpt.index":
            return from_openai(candidate.with_suffix(""))
        if candidate.suffix == ".pth":
            return from_pth(candidate)
    if (path / "model.safetensors.index.json").is_file():
        return from_hub_folder(path)
    raise FileNotFoundError(
        f"{path} holds no model.safetensors, model.ckpt.index, model.pth or .gguf file"
    )


def _config_in(folder: Path) -> dict | None:
    """Our configuration of the GPT in a folder, if there is a file that says it."""
    if (folder / "hparams.json").is_file():
        return config_from_openai(read_json(folder / "hparams.json"))
    if (folder / "settings.json").is_file():
        settings = read_json(folder / "settings.json")
        if not isinstance(settings.get("config"), dict):
            raise ValueError(f"{folder / 'settings.json'} has no 'config' of a model")
        return settings["config"]
    return None


def _usual_config(source: TensorSource) -> dict:
    """The configuration of a usual GPT-2, or of ours, that has these shapes.

    All but the number of heads can be seen from them; that comes from the width.
    """
    shapes = {name.removeprefix("transformer."): shape for name, shape in source.shapes.items()}
    ours = "tok_emb.weight" in shapes
    embedding = shapes.get("tok_emb.weight" if ours else "wte.weight")
    positions = shapes.get("pos_emb.weight" if ours else "wpe.weight")
    heads = {sizes["emb_dim"]: sizes["n_heads"] for sizes in model_configs.values()} | {192: 6}
    if not embedding or not positions or embedding[-1] not in heads:
        raise ValueError(
            f"{source.description}: put its config.json or settings.json beside it: it is "
            "no usual GPT-2"
        )
    blocks = {name.split(".")[1] for name in shapes if name.startswith(("h.", "trf_blocks."))}
    bias = "trf_blocks.0.att.W_query.bias" in shapes or "trf_blocks.0.att.qkv.bias" in shapes
    return BASE_CONFIG | {
        "vocab_size": embedding[0],
        "context_length": positions[0],
        "emb_dim": embedding[-1],
        "n_layers": len(blocks),
        "n_heads": heads[embedding[-1]],
        "qkv_bias": bias or not ours,
    }


def download_and_load_gpt2(model_size: str, models_dir: str | Path) -> tuple[dict, dict]:
    """OpenAI's TensorFlow checkpoint as ``(settings, params)``, without TensorFlow (section 5.5).

    ``model_size`` is "124M", "355M", "774M" or "1558M". The files are kept in
    ``models_dir/model_size``. Raises ``ValueError`` for another size, and ``DownloadError`` if a
    file cannot be had.
    """
    if model_size not in GPT2_SIZES:
        raise ValueError(f"model_size must be one of {tuple(GPT2_SIZES)}, got {model_size!r}")
    folder = Path(models_dir) / model_size
    for file_name in OPENAI_FILES:
        fetch(f"openai-{model_size}/{file_name}", target=folder / file_name)
    for file_name in ("encoder.json", "vocab.bpe"):
        fetch(f"gpt2-vocab/{file_name}", target=folder / file_name)
    settings = json.loads((folder / "hparams.json").read_text(encoding="utf-8"))
    return settings, load_gpt2_params_from_tf_ckpt(folder / "model.ckpt", settings)


def bundled_in_openai_layout() -> tuple[dict, dict]:
    """``gpt2-tiny`` as what ``download_and_load_gpt2`` returns: settings, and nested arrays."""
    config = read_json(BUNDLED / "config.json")
    theirs = {"n_ctx": "n_positions", "n_vocab": "vocab_size"}
    names = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
    settings = {name: config[theirs.get(name, name)] for name in names}
    params: dict = {"blocks": [{} for _ in range(settings["n_layer"])]}
    source = from_safetensors(BUNDLED / "model.safetensors")
    for name in source.shapes:
        *path, leaf = name.removeprefix("transformer.").split(".")
        target = params
        if path[0] == "h":  # h.0.attn.c_attn.weight: a tensor of block 0
            target, path = params["blocks"][int(path[1])], path[2:]
        if path[0] in ("wte", "wpe"):
            path, short = [], path[0]
        else:
            short = "b" if leaf == "bias" else "g" if path[-1].startswith("ln") else "w"
        for key in path if path != ["ln_f"] else []:
            target = target.setdefault(key, {})
        target[short] = source.read(name).numpy()
    return settings, params


def config_from_openai(settings: dict) -> dict:
    """Our configuration of a model with OpenAI's ``hparams.json``."""
    names = {
        "vocab_size": "n_vocab",
        "context_length": "n_ctx",
        "emb_dim": "n_embd",
        "n_heads": "n_head",
        "n_layers": "n_layer",
    }
    missing = [theirs for theirs in names.values() if theirs not in settings]
    if missing:
        raise ValueError(f"hparams.json lacks {', '.join(missing)}")
    return BASE_CONFIG | {ours: settings[theirs] for ours, theirs in names.items()}


def _gpt2(
    name: str,
    config: dict,
    source: TensorSource,
    model_class: type,
    folder: Path | None = None,
) -> Pretrained:
    model = model_class(config)
    load_gpt2(model, source)
    own = folder / "tokenizer.json" if folder else None

    def make_tokenizer():
        if own is not None and own.is_file():
            return HubTokenizer(own, END_OF_TEXT)
        return get_tokenizer("gpt2") if config["vocab_size"] == 50257 else None

    eos = frozenset({50256}) if config["vocab_size"] == 50257 else frozenset()
    return Pretrained(name, config, model.eval(), "gpt2", eos, "", make_tokenizer)


def _size_in(name: str) -> str:
    """The size in a name.

    >>> _size_in("gpt2-small (124M)")
    '124M'
    """
    return name.partition("(")[2].rstrip(")")
