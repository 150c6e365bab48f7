"""One decoding loop for every model: greedy or sampled, one prompt or many, with a cache.

``generate`` gives whole texts as token ids, ``generate_tokens`` each step as soon as it is known,
and ``generate_text`` and ``stream_text`` do the same with strings. The functions of that name in
chapters 4 and 5 are the book's; they compute the whole text anew for each token.

Shapes: b = number of prompts, n = tokens, vocab_size = classes.
"""

import codecs
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn as nn

from llms_from_scratch.ch04 import GPTModel, GPTModelFast
from llms_from_scratch.kv_cache.cache import KVCache, left_pad
from llms_from_scratch.kv_cache.optimized import with_cache


def trim_input_tensor(
    input_ids_tensor: torch.Tensor, context_len: int, max_new_tokens: int
) -> torch.Tensor:
    """The last tokens of a prompt (b, n), so that ``max_new_tokens`` more fit into the context.

    Raises ``ValueError`` if the new tokens alone fill the context.
    """
    if max_new_tokens >= context_len:
        raise ValueError(
            f"{max_new_tokens} new tokens leave no room for a prompt in a context of {context_len}"
        )
    return input_ids_tensor[:, -(context_len - max_new_tokens) :]


# --- Choosing a token ---


def softmax_with_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Probabilities that are sharper for a temperature below 1 and flatter above (section 5.3.1).

    Works along the last dimension. The largest logit is subtracted first, which changes no
    probability, but keeps the numbers finite for temperatures close to 0.
    """
    logits = logits - logits.max(dim=-1, keepdim=True).values
    return torch.softmax(logits / temperature, dim=-1)


def pick_next_token(
    logits: torch.Tensor,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Choose one token per row: logits (b, vocab_size) give ids (b, 1) (section 5.3).

    Temperature 0 takes the largest logit. Otherwise a token is drawn at random, from exactly the
    ``top_k`` most probable ones (``None`` or 0: from all), and from the fewest that together have
    the probability ``top_p`` (Holtzman et al., "The Curious Case of Neural Text Degeneration",
    2020).
    Raises ``ValueError`` for a temperature or ``top_k`` that is negative or no number, ``top_p``
    outside of 0 to 1, and logits of which a row has no finite maximum.
    """
    check_sampling(temperature, top_k, top_p)
    check_logits(logits)
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)  # (b, 1)
    if top_k:
        values, indices = logits.topk(min(top_k, logits.shape[-1]), dim=-1)  # (b, top_k)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, indices, values)
    probas = softmax_with_temperature(logits, temperature)  # (b, vocab_size)
    if top_p is not None:
        ordered, indices = probas.sort(dim=-1, descending=True)
        enough = ordered.cumsum(dim=-1) - ordered >= top_p  # those before have top_p already
        enough[:, 0] = False  # the best one always stays
        probas = probas.masked_fill(enough.scatter(-1, indices, enough), 0.0)
    return torch.multinomial(probas, num_samples=1, generator=generator)  # (b, 1)


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ``ValueError`` for numbers that choose no token, or not the way they look."""
    if not (temperature == 0 or 1e-30 <= temperature < math.inf):
        raise ValueError(
            f"temperature must be 0 (no randomness), or from 1e-30 on; got {temperature}"
        )
    if top_k is not None and (top_k < 0 or top_k != int(top_k)):
        raise ValueError(f"top_k must be a whole number from 1 on (0: all tokens), got {top_k}")
    if top_p is not None and not 0 <= top_p <= 1:
        raise ValueError(f"top_p must be from 0 to 1, got {top_p}")


def check_logits(logits: torch.Tensor) -> None:
    """Raise ``ValueError`` if a row has a NaN, an infinity, or nothing above minus infinity.

    Looked at on the CPU only: on a GPU, the check would make each step wait for the device.
    """
    if logits.device.type == "cpu" and not logits.max(dim=-1).values.isfinite().all():
        raise ValueError(
            "the logits have no finite maximum: the model's weights are damaged, or its training "
            "has diverged"
        )


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the default is the most probable one, without randomness.

    ``min_p`` drops tokens that are less probable than this share of the best one's probability
    (Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024). ``repetition_penalty`` divides
    positive logits of tokens that the text has already, and multiplies negative ones (Keskar et
    al., "CTRL", 2019). ``pick_next_token`` explains the others. Raises ``ValueError``.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        check_sampling(self.temperature, self.top_k, self.top_p)
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be from 0 to 1, got {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty must be above 0 (1: none), got {self.repetition_penalty}"
            )

    def choose(
        self,
        logits: torch.Tensor,
        texts: Callable[[], list[torch.Tensor]],
        generators: Sequence[torch.Generator | None],
    ) -> torch.Tensor:
        """Ids (b, 1) from logits (b, vocab_size); ``texts`` tells the ids of each row so far."""
        if self.repetition_penalty != 1:
            rows = zip(logits, texts(), strict=True)
            logits = torch.stack([penalize(*row, self.repetition_penalty) for row in rows])
        if self.temperature == 0:
            return pick_next_token(logits)
        if self.min_p:
            probas = softmax_with_temperature(logits, self.temperature)
            least = self.min_p * probas.max(dim=-1, keepdim=True).values
            logits = logits.masked_fill(probas < least, -torch.inf)
        chosen = [
            pick_next_token(row[None], self.temperature, self.top_k, self.top_p, generator)
            for row, generator in zip(logits, generators, strict=True)
        ]
        return torch.cat(chosen)


def penalize(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits (vocab_size,) with those of the ids in ``seen`` lowered.

    >>> penalize(torch.tensor([2.0, -1.0, 3.0]), torch.tensor([0, 1, 0]), 2.0)
    tensor([ 1., -2.,  3.])
    """
    lowered = logits[seen]
    return logits.index_put((seen,), torch.where(lowered > 0, lowered / penalty, lowered * penalty))


# --- The loop ---


@dataclass
class Row:
    """One prompt of a batch, and what becomes of it."""

    prompt: list[int]
    new_ids: list[int] = field(default_factory=list)
    most: int = 0  # new tokens
    stopped: bool = False

    @property
    def runs(self) -> bool:
        return not self.stopped and len(self.new_ids) < self.most


def generate_tokens(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    stop_ids: Iterable[int] = (),
    seed: int | Sequence[int] | None = None,
    on_token: Callable[[int, int], bool | None] | None = None,
    context_size: int | None = None,
    stop_when_full: bool = False,
    use_cache: bool = True,
) -> Iterator[list[int | None]]:
    """Yield one list per step: the new token id of each prompt, None for those that have ended.

    Prompts may have unequal lengths. A row ends at one of ``stop_ids``, which is not yielded, after
    ``max_new_tokens``, or when ``on_token(row, token_id)`` returns True. ``seed`` makes the draws
    repeatable; each row has its own (``seed`` + its number, or the numbers of a list), so that a
    row gets the same text in any company, up to rounding.

    Each step shows the model one token per row, until the window of ``context_size`` tokens (at
    most, and by default, the model's context) is full. Then the window moves by one token per step,
    its tokens get new positions, and all of it is computed anew; with ``stop_when_full``, a row
    ends there. ``use_cache=False`` computes the window anew in each step.

    The model is in ``eval()`` mode meanwhile. A model that takes no cache, one of the reader's own
    say, is shown the whole window in each step. Raises ``ValueError`` for an empty prompt, ids
    outside of the vocabulary, and numbers that make no sense, before the first step.
    """
    rows = [Row([int(token_id) for token_id in prompt]) for prompt in prompts]
    sampling = sampling or Sampling()
    limit = _context_length(model)
    context_size = limit if context_size is None else context_size
    _check_request(model, rows, max_new_tokens, context_size)
    context_size = min(context_size, limit)
    for row in rows:
        row.most = max_new_tokens
        if stop_when_full:
            row.most = min(max_new_tokens, max(0, context_size - len(row.prompt)))
    window = _Window(model, rows, context_size, use_cache)
    generators = _generators(seed, len(rows), window.tokens.device)
    return _steps(window, rows, sampling, set(stop_ids), generators, on_token)


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    **options,
) -> list[list[int]]:
    """The new token ids of each prompt; see ``generate_tokens`` for the options and errors."""
    new_ids: list[list[int]] = [[] for _ in prompts]
    for step in generate_tokens(model, prompts, max_new_tokens, sampling, **options):
        for row, token_id in zip(new_ids, step, strict=True):
            if token_id is not None:
                row.append(token_id)
    return new_ids


def _steps(window, rows, sampling, stop_ids, generators, on_token):
    """The loop itself: logits, a token for each row that goes on, until none does."""
    batch = list(range(len(rows)))  # numbers of the rows that are still computed
    was_training = window.model.training
    window.model.eval()
    try:
        while any(row.runs for row in rows):
            running = [place for place, i in enumerate(batch) if rows[i].runs]
            if len(running) <= len(batch) // 2:  # those that have ended cost as much as the others
                window.keep_rows(running)
                batch = [batch[place] for place in running]
            logits = window.logits().float()  # (rows in the batch, vocab_size)
            chosen = sampling.choose(logits, window.texts, [generators[i] for i in batch])
            window.append(chosen)
            step: list[int | None] = [None] * len(rows)
            for i, token_id in zip(batch, chosen[:, 0].tolist(), strict=True):
                if rows[i].runs:
                    step[i] = _add(rows[i], token_id, stop_ids)
                    if on_token is not None and step[i] is not None:
                        rows[i].stopped |= bool(on_token(i, token_id))
            if any(token_id is not None for token_id in step):
                yield step
    finally:
        window.model.train(was_training)


def _add(row: Row, token_id: int, stop_ids: set[int]) -> int | None:
    """Give a row its next token, unless that ends it."""
    if token_id in stop_ids:
        row.stopped = True
        return None
    row.new_ids.append(token_id)
    return token_id


class _Window:
    """The tokens of a batch of rows, padded on the left, and the part that the model is shown."""

    def __init__(self, model, rows, context_size, use_cache):
        self.context_size = context_size
        self.model, takes_cache = cacheable(model)
        device = next(model.parameters()).device
        idx, lengths = left_pad([row.prompt for row in rows])
        b, n = idx.shape
        max_new_tokens = max(row.most for row in rows)
        self.tokens = idx.new_zeros(b, n + max_new_tokens, device=device)
        self.tokens[:, :n] = idx.to(device)
        self.end = n
        self.padding = (n - lengths).to(device)
        self.use_cache = use_cache
        capacity = min(context_size, n + max(max_new_tokens - 1, 0))
        self.cache = KVCache.for_model(self.model, capacity) if takes_cache else None

    def logits(self) -> torch.Tensor:
        """What the model says about the next token of each row, (b, vocab_size)."""
        first = max(0, self.end - self.context_size)
        with torch.inference_mode():
            if self.cache is None:
                logits = self._logits_row_by_row(first)
                return logits.clone()
            if self.use_cache and 0 < self.cache.length < self.context_size:
                shown = self.tokens[:, self.end - 1 : self.end]
            else:  # the first step, or the window has moved
                self.cache.reset((self.padding - first).clamp(min=0))
                shown = self.tokens[:, first : self.end]
            logits = self.model(shown, cache=self.cache, last_only=True)[:, -1]
        return logits.clone()  # outside of inference mode, so that the result is an ordinary tensor

    def _logits_row_by_row(self, first: int) -> torch.Tensor:
        """For a model without a cache, which cannot tell padding from text."""
        starts = (self.padding.clamp(min=first)).tolist()
        if len(set(starts)) == 1:
            return self.model(self.tokens[:, starts[0] : self.end])[:, -1]
        rows = zip(self.tokens, starts, strict=True)
        return torch.cat([self.model(row[None, start : self.end])[:, -1] for row, start in rows])

    def append(self, chosen: torch.Tensor) -> None:
        self.tokens[:, self.end : self.end + 1] = chosen
        self.end += 1

    def texts(self) -> list[torch.Tensor]:
        """Each row's ids without padding."""
        starts = self.padding.tolist()
        rows = zip(self.tokens, starts, strict=True)
        return [row[start : self.end] for row, start in rows]

    def keep_rows(self, places: list[int]) -> None:
        kept = torch.tensor(places, device=self.tokens.device)
        self.tokens, self.padding = self.tokens[kept], self.padding[kept]
        if self.cache is not None:
            self.cache.keep_rows(kept)


def cacheable(model: nn.Module) -> tuple[nn.Module, bool]:
    """The model as one that takes a cache, if it can be."""
    if type(model) in (GPTModel, GPTModelFast):
        return with_cache(model), True
    return model, hasattr(model, "windows")


def _context_length(model: nn.Module) -> int:
    if hasattr(model, "cfg"):
        return model.cfg["context_length"]
    return model.pos_emb.num_embeddings


def _check_request(model, rows, max_new_tokens, context_size) -> None:
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must not be negative, got {max_new_tokens}")
    if context_size < 1:
        raise ValueError(f"context_size must be at least 1, got {context_size}")
    if not rows:
        raise ValueError("there is no prompt to go on from")
    vocab_size = model.tok_emb.num_embeddings
    for number, row in enumerate(rows):
        if not row.prompt:
            raise ValueError(f"prompt {number} is empty: generation needs a token to start from")
        low, high = min(row.prompt), max(row.prompt)
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"prompt {number} has token id {low if low < 0 else high}, outside of the model's "
                f"vocabulary, 0 to {vocab_size - 1}: does the tokenizer belong to this model?"
            )


def _generators(seed, b: int, device: torch.device) -> list[torch.Generator | None]:
    """One source of random numbers per row; None for PyTorch's own."""
    if seed is None:
        return [None] * b
    seeds = [seed + i for i in range(b)] if isinstance(seed, int) else list(seed)
    if len(seeds) != b:
        raise ValueError(f"give one seed, or one for each of {b} prompts; got {len(seeds)}")
    return [torch.Generator(device).manual_seed(number) for number in seeds]


# --- Text ---


def token_bytes(tokenizer, token_id: int) -> bytes:
    """The bytes of a token; none for an id without a token, which only fills up a vocabulary.

    Models are often padded to a round number of ids, which their tokenizers do not know.
    """
    try:
        return tokenizer.decode_single_token_bytes(token_id)
    except KeyError:
        return b""


class TextStream:
    """Text from tokens that arrive one by one.

    A token may end inside a character, which has up to four bytes in UTF-8. So the text is given
    out only up to the last whole character; and, with ``stop_strings``, only as far as it cannot
    become one of them. ``stopped`` is True once one has come; it and what follows are left out.
    """

    def __init__(self, tokenizer, stop_strings: Iterable[str] = ()):
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.stop_strings = [stop for stop in stop_strings if stop]
        self.held_back = ""
        self.stopped = False

    def add(self, token_id: int) -> str:
        """The text that this token completes; empty if it ends inside a character."""
        return self._cut(self.decoder.decode(token_bytes(self.tokenizer, token_id)))

    def rest(self) -> str:
        """What is left at the end: a replacement sign if a character was not completed."""
        text = self._cut(self.decoder.decode(b"", final=True))
        text, self.held_back = text + ("" if self.stopped else self.held_back), ""
        return text

    def _cut(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self.held_back + text
        places = [place for place in map(text.find, self.stop_strings) if place >= 0]
        if places:
            self.stopped, self.held_back = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self.stop_strings), default=0)
        self.held_back = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``.

    >>> _overlap("one <|", "<|end|>"), _overlap("one", "<|end|>")
    (2, 0)
    """
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)


def stream_text(
    model: nn.Module,
    tokenizer,
    prompt: str | Sequence[int],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    stop_strings: Iterable[str] = (),
    **options,
) -> Iterator[str]:
    """Yield the text that follows a prompt piece by piece.

    ``prompt`` is a string, in which nothing is a special token, or ids. The text ends before one of
    ``stop_strings``; the other options are those of ``generate_tokens``.
    """
    ids = tokenizer.encode_ordinary(prompt) if isinstance(prompt, str) else list(prompt)
    stream = TextStream(tokenizer, stop_strings)
    for (token_id,) in generate_tokens(model, [ids], max_new_tokens, sampling, **options):
        piece = stream.add(token_id)
        if piece:
            yield piece
        if stream.stopped:
            return
    rest = stream.rest()
    if rest:
        yield rest


def generate_text(
    model: nn.Module,
    tokenizer,
    prompts: str | Sequence[str],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    stop_strings: Iterable[str] = (),
    **options,
) -> str | list[str]:
    """The text that follows a prompt, or several; see ``stream_text``."""
    several = not isinstance(prompts, str)
    ids = [tokenizer.encode_ordinary(text) for text in (prompts if several else [prompts])]
    streams = [TextStream(tokenizer, stop_strings) for _ in ids]
    texts = [""] * len(ids)

    def add(row: int, token_id: int) -> bool:
        texts[row] += streams[row].add(token_id)
        return streams[row].stopped

    for _ in generate_tokens(model, ids, max_new_tokens, sampling, on_token=add, **options):
        pass
    texts = [text + stream.rest() for text, stream in zip(texts, streams, strict=True)]
    return texts if several else texts[0]
