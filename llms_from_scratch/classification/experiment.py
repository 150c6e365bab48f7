"""One experiment: prepare texts and model, train, measure. All comparisons use this one way."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch
import torch.nn as nn

from llms_from_scratch.ch05 import evaluating, take_batches
from llms_from_scratch.ch06 import calc_loss_batch, evaluate_model, pad_or_cut
from llms_from_scratch.classification.models import (
    TOKEN_POSITIONS,
    TRAINABLE_LAYERS,
    TextClassifier,
    first_trained_block,
    frozen_features,
    set_trainable,
)
from llms_from_scratch.classification.texts import (
    IGNORED,
    EncodedTexts,
    LabelledTexts,
    LengthBatches,
    encode_all,
)
from llms_from_scratch.training.loop import Trainer
from llms_from_scratch.weights.pretrained import Pretrained

CONTEXT_LENGTHS = ("longest_training_example", "model_context_length")
SPLITS = ("train", "validation", "test")
MAX_GRAD_NORM = 1.0  # with the cosine schedule
WARM_UP = 0.1  # share of the updates


@dataclass(frozen=True)
class Settings:
    """What distinguishes one experiment from another; see ``--help`` of the scripts.

    Raises ``ValueError`` naming the setting that makes no sense.
    """

    trainable_layers: str = "last_block"
    trainable_token_pos: str = "last"
    average_embeddings: bool = False
    context_length: str = "longest_training_example"
    lora_rank: int = 8
    lora_alpha: float = 8
    last_blocks: int | None = None
    no_padding: bool = False
    num_epochs: int = 5
    batch_size: int = 8
    accumulation_steps: int = 1
    disable_causal_mask: bool = False
    ignore_index: int = IGNORED
    learning_rate: float = 5e-5
    schedule: str = "constant"
    precision: str = "fp32"
    keep_best: bool = False  # the epoch that is best on the validation texts
    cache_frozen: bool = True
    by_length: bool = True
    seed: int = 123

    def __post_init__(self):
        choices = {
            "trainable_layers": TRAINABLE_LAYERS,
            "trainable_token_pos": TOKEN_POSITIONS,
            "schedule": ("constant", "cosine"),
            "precision": ("fp32", "bf16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("num_epochs", "batch_size", "accumulation_steps", "lora_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        is_number = self.context_length.isdecimal() and int(self.context_length) > 0
        if self.context_length not in CONTEXT_LENGTHS and not is_number:
            raise ValueError(
                f"context_length must be one of {CONTEXT_LENGTHS} or a number of tokens from 1, "
                f"got {self.context_length!r}"
            )
        if self.no_padding and self.batch_size != 1:
            raise ValueError(
                "no_padding: texts of different lengths make no batch, so batch_size must be 1, "
                f"got {self.batch_size}; accumulation_steps gives the same update"
            )

    def key(self, *others: str) -> str:
        """A short name for these settings and whatever else makes a run, such as its data."""
        content = json.dumps([asdict(self), *others], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass
class Prepared:
    """A model ready to be trained, and what it reads."""

    classifier: nn.Module
    data: dict[str, EncodedTexts]
    pad_id: int = 0
    max_length: int = 0
    seconds: float = 0.0  # for the frozen layers
    token_ids: Callable[[str], list[int]] | None = None  # of a text, as the model reads it
    decode: Callable[[list[int]], str] | None = None


@dataclass
class Result:
    """What came out of an experiment; accuracies from 0 to 1."""

    accuracies: dict[str, float]
    seconds: float
    frozen_seconds: float
    trainable_parameters: int
    max_length: int
    train_losses: list[float]
    val_losses: list[float]
    steps: list[int]
    epoch_val_accuracies: list[float]
    probabilities: dict[str, list[list[float]]] = field(repr=False, default_factory=dict)


def prepare(
    pretrained: Pretrained,
    texts: Mapping[str, LabelledTexts],
    settings: Settings,
    device: torch.device | str = "cpu",
    features: dict | None = None,
) -> Prepared:
    """Turn a pretrained model into a classifier, and texts into what it reads.

    ``features`` keeps what frozen layers give from one call to the next; it is used if
    ``settings.cache_frozen`` and something is frozen. The texts are checked first.
    """
    limit = pretrained.model.cfg["context_length"]
    encode = pretrained.tokenizer.encode_ordinary
    max_length = choose_length(texts["train"], encode, settings.context_length, limit)
    torch.manual_seed(settings.seed)
    classifier = TextClassifier(
        pretrained.model,
        max(max(split.labels) for split in texts.values()) + 1,
        settings.trainable_token_pos,
        settings.average_embeddings,
        not settings.disable_causal_mask,
    )
    set_trainable(
        classifier,
        settings.trainable_layers,
        settings.lora_rank,
        settings.lora_alpha,
        settings.last_blocks,
    )
    classifier.to(device)
    # Padding to one length only where it changes the result: else batches are as short as can be
    fixed = not settings.no_padding and (
        classifier.needs_fixed_length or settings.context_length == "model_context_length"
    )
    pad_to = max_length if fixed or not settings.by_length else None
    data = {
        name: encode_all(split, encode, max_length, pad_to, pretrained.pad_id)
        for name, split in texts.items()
    }

    def token_ids(text: str) -> list[int]:
        found = encode(text)[:max_length]
        return pad_or_cut(found, pad_to or len(found), pretrained.pad_id)

    prepared = Prepared(classifier, data, pretrained.pad_id, max_length)
    prepared.token_ids, prepared.decode = token_ids, pretrained.tokenizer.decode
    stop = first_trained_block(classifier)
    if settings.cache_frozen and stop > 0:
        started = time.perf_counter()
        key = (pretrained.name, stop, pad_to, max_length, classifier.causal, settings.precision)
        features = {} if features is None else features
        if key not in features:
            features.clear()  # they are large: only those of the last call are kept
            dtype = autocast_dtype(settings)
            features[key] = {
                name: frozen_features(classifier, split, stop, pretrained.pad_id, device, dtype)
                for name, split in data.items()
            }
        prepared.data, classifier.start = features[key], stop
        prepared.seconds = time.perf_counter() - started
    return prepared


def choose_length(
    train: LabelledTexts, encode: Callable[[str], list[int]], context_length: str, limit: int
) -> int:
    """How many tokens of a text are read; ``ValueError`` for more than the model's ``limit``."""
    if context_length == "model_context_length":
        return limit
    if context_length == "longest_training_example":
        return min(limit, max(len(encode(text)) for text in train.texts))
    if int(context_length) > limit:
        raise ValueError(
            f"context_length must be at most the model's context of {limit}, got {context_length}"
        )
    return int(context_length)


def autocast_dtype(settings: Settings) -> torch.dtype | None:
    return torch.bfloat16 if settings.precision == "bf16" else None


def run_experiment(
    prepared: Prepared,
    settings: Settings,
    device: torch.device | str = "cpu",
    weight_decay: float = 0.1,
    eval_freq: int = 50,
    eval_iter: int = 5,
) -> Result:
    """Train with AdamW and measure the accuracy on all texts of each split."""
    classifier, started = prepared.classifier, time.perf_counter()
    torch.manual_seed(settings.seed)
    options = {"by_length": settings.by_length}
    train_loader = LengthBatches(
        without_label(prepared.data["train"], settings.ignore_index),
        settings.batch_size,
        prepared.pad_id,
        shuffle=True,
        **options,
    )
    eval_size = 1 if settings.no_padding else 32
    loaders = {
        name: LengthBatches(split, eval_size, prepared.pad_id, **options)
        for name, split in prepared.data.items()
    }
    trained = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=weight_decay)
    updates = settings.num_epochs * math.ceil(len(train_loader) / settings.accumulation_steps)
    best = _BestEpoch(trained)

    def at_epoch_end() -> None:
        logits, labels = predict(classifier, loaders["validation"], device, settings)
        best.offer(accuracy(logits, labels), nn.functional.cross_entropy(logits, labels).item())

    trainer = Trainer(
        classifier,
        optimizer,
        train_loader,
        loaders["validation"],
        device,
        num_epochs=settings.num_epochs,
        eval_freq=eval_freq,
        eval_iter=eval_iter,
        scheduler=_scheduler(optimizer, updates) if settings.schedule == "cosine" else None,
        accumulate=settings.accumulation_steps,
        max_grad_norm=MAX_GRAD_NORM if settings.schedule == "cosine" else None,
        autocast_dtype=autocast_dtype(settings),
        calc_loss=calc_loss_batch,
        evaluate=evaluate_model,
        on_epoch_end=at_epoch_end,
    )
    stopped_by = trainer.run()
    if stopped_by:
        raise KeyboardInterrupt
    if settings.keep_best:
        best.restore()
    outputs = {
        name: predict(classifier, loader, device, settings) for name, loader in loaders.items()
    }
    return Result(
        accuracies={name: accuracy(*output) for name, output in outputs.items()},
        seconds=time.perf_counter() - started,
        frozen_seconds=prepared.seconds,
        trainable_parameters=sum(p.numel() for p in trained),
        max_length=prepared.max_length,
        train_losses=trainer.progress.train_losses,
        val_losses=trainer.progress.val_losses,
        steps=[eval_freq * i + 1 for i in range(len(trainer.progress.train_losses))],
        epoch_val_accuracies=best.accuracies,
        probabilities={
            name: torch.softmax(logits, dim=-1).tolist()
            for name, (logits, _) in outputs.items()
            if name != "train"
        },
    )


def without_label(data: EncodedTexts, ignore_index: int) -> EncodedTexts:
    """The texts that the loss counts: all whose label is not ``ignore_index``.

    Raises ``ValueError`` if none is left.
    """
    kept = [i for i, label in enumerate(data.labels) if label != ignore_index]
    if not kept:
        raise ValueError(f"ignore_index is {ignore_index}, the label of all training texts")
    columns = (data.values, data.lengths, data.labels)
    return EncodedTexts(*([column[i] for i in kept] for column in columns))


def predict(
    classifier: nn.Module,
    loader: LengthBatches,
    device: torch.device | str = "cpu",
    settings: Settings | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (num_texts, num_classes) and labels (num_texts,), in the order of the data."""
    dtype = autocast_dtype(settings) if settings else None
    autocast = torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None)
    with evaluating(classifier), autocast:
        logits = [classifier(batch.to(device))[:, -1].float() for batch, _ in take_batches(loader)]
    ordered = torch.cat(logits).cpu()
    ordered[loader.order] = ordered.clone()
    return ordered, torch.tensor(loader.dataset.labels)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return (logits.argmax(dim=-1) == labels).float().mean().item()


def _scheduler(optimizer: torch.optim.Optimizer, updates: int):
    """Linear warm-up over the first tenth of the updates, then half a cosine down to 0."""

    def factor(step: int) -> float:
        warm_up = min(1.0, (step + 1) / max(1.0, WARM_UP * updates))
        return warm_up * 0.5 * (1 + math.cos(math.pi * min(1.0, step / updates)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class _BestEpoch:
    """The trained parameters of the epoch that did best on the validation texts."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters, self.accuracies = parameters, []
        self.score, self.kept = (-1.0, 0.0), None

    def offer(self, accuracy: float, loss: float) -> None:
        self.accuracies.append(accuracy)
        if (accuracy, -loss) > self.score:
            self.score = accuracy, -loss
            self.kept = [parameter.detach().clone() for parameter in self.parameters]

    def restore(self) -> None:
        with torch.no_grad():
            for parameter, kept in zip(self.parameters, self.kept, strict=True):
                parameter.copy_(kept)
