"""Byte-pair encoding from scratch: two trainers, encoding, decoding, and GPT-2's own tables.

A tokenizer of this kind starts with single bytes (or characters) as tokens and learns *merges*: the
most frequent pair of neighbouring tokens becomes a new token, again and again. Text is cut into
chunks first, roughly words, and no merge crosses the border of a chunk.

``BPETokenizerSimple`` is the book's class. ``BPETokenizer`` works on bytes, loses nothing, and is
fast enough for megabytes.

Sources: Gage, "A New Algorithm for Data Compression" (1994); Sennrich, Haddow and Birch, "Neural
Machine Translation of Rare Words with Subword Units" (2015); Radford et al., "Language Models are
Unsupervised Multitask Learners" (2019), for bytes as a start.
"""

import contextlib
import gc
import heapq
import json
import operator
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import tiktoken

from llms_from_scratch.data.files import atomic_write
from llms_from_scratch.tokenizer import END_OF_TEXT, GPT2_SPLIT_PATTERN, byte_symbols, gpt2_merges

Pair = tuple[int, int]
SPACE = "Ġ"  # how GPT-2's files, and BPETokenizerSimple, write a space inside a token
LONG_CHUNK = 64  # tokens from which on encode_chunk uses a heap


def count_pairs(chunks: Mapping[tuple[int, ...], int]) -> Counter[Pair]:
    """How often each pair of neighbours occurs; ``chunks`` maps token ids to their number.

    The order of the pairs is that in which they are first met. In a run such as "aaa", the pair
    counts twice, although only one of the two can be merged.
    """
    counts: Counter[Pair] = Counter()
    for ids, times in chunks.items():
        for pair in pairwise(ids):
            counts[pair] += times
    return counts


def merge_pair(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Replace each occurrence of the pair, from left to right, by ``new_id``.

    >>> merge_pair([1, 2, 1, 2, 1], (1, 2), 9)
    [9, 9, 1]
    """
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


class Tokens:
    """Bytes of each token, and the token of some bytes; 0 to 255 are the bytes themselves."""

    def __init__(self, byte_order: Iterable[int] = range(256)):
        self.bytes_of = [bytes([byte]) for byte in byte_order]
        self._id_of = {value: token for token, value in enumerate(self.bytes_of)}

    def join(self, pair: Pair) -> int:
        """The token that the pair becomes: a new one, unless one with the same bytes exists.

        ("ab", "c") and ("a", "bc") can both be learned; they make one token "abc".
        """
        value = self.bytes_of[pair[0]] + self.bytes_of[pair[1]]
        token = self._id_of.setdefault(value, len(self.bytes_of))
        if token == len(self.bytes_of):
            self.bytes_of.append(value)
        return token

    def __len__(self) -> int:
        return len(self.bytes_of)


def train_naive(chunks: Mapping[bytes, int], num_tokens: int) -> list[Pair]:
    """Learn merges until there are ``num_tokens`` tokens, counting all pairs anew for each merge.

    ``chunks`` maps each distinct chunk to how often it occurs. The 256 bytes are tokens from the
    start, and each merge makes the next one. Of several most frequent pairs, the one with the
    smaller ids is taken (first by left id, then by right id). Stops early when no pairs are left.
    """
    tokens = Tokens()
    words = {tuple(chunk): times for chunk, times in chunks.items()}
    merges: list[Pair] = []
    while len(tokens) < num_tokens:
        counts = count_pairs(words)
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        new_id = tokens.join(best)
        merges.append(best)
        words = {tuple(merge_pair(ids, best, new_id)): times for ids, times in words.items()}
    return merges


class PairIndex:
    """All chunks as one row of tokens, and for each pair its count and the places where it stands.

    Each token is linked to its neighbours, so a merge costs the same wherever it happens: in a
    short word, or in a text without spaces that is a single chunk. -1 separates chunks, and stands
    where a token was merged into the one before.
    """

    def __init__(self, chunks: Mapping[bytes, int]):
        self.ids, self.times = [-1], [0]  # times: how often the chunk occurs
        for chunk, times in chunks.items():
            self.ids += [*chunk, -1]
            self.times += [*[times] * len(chunk), 0]
        self.following = list(range(1, len(self.ids) + 1))
        self.previous = list(range(-1, len(self.ids) - 1))
        self.counts: dict[Pair, int] = defaultdict(int)
        self.places: dict[Pair, list[int]] = defaultdict(list)
        for place, pair in enumerate(pairwise(self.ids)):
            if min(pair) >= 0:
                self.counts[pair] += self.times[place]
                self.places[pair].append(place)

    def merge(self, pair: Pair, new_id: int) -> set[Pair]:
        """Put ``new_id`` wherever the pair stands; return the pairs that became more frequent."""
        ids, counts, places = self.ids, self.counts, self.places
        previous, following = self.previous, self.following
        first, second = pair
        grown = set()
        for place in sorted(places.pop(pair)):  # in a run such as "aaa", the left pair is merged
            right = following[place]
            if ids[place] != first or ids[right] != second:
                continue  # another merge has taken the pair apart
            left, after, times = previous[place], following[right], self.times[place]
            ids[place], ids[right] = new_id, -1
            following[place], previous[after] = after, place
            if (before := ids[left]) >= 0:
                counts[before, first] -= times
                counts[new := (before, new_id)] += times
                places[new].append(left)
                grown.add(new)
            if (behind := ids[after]) >= 0:
                counts[second, behind] -= times
                counts[new := (new_id, behind)] += times
                places[new].append(place)
                grown.add(new)
        del counts[pair]
        return grown


def train_incremental(chunks: Mapping[bytes, int], num_tokens: int) -> list[Pair]:
    """The same merges as ``train_naive``, found without counting again what did not change.

    A merge visits only the places where its pair stands. The most frequent pair comes from a heap.
    Its entries may be out of date (counts change, entries do not): one that claims too much is put
    back with the present count when it comes up.
    """
    index = PairIndex(chunks)
    heap = [(-count, pair) for pair, count in index.counts.items()]
    heapq.heapify(heap)
    tokens = Tokens()
    merges: list[Pair] = []
    while heap and len(tokens) < num_tokens:
        claimed, best = heapq.heappop(heap)
        count = index.counts.get(best, 0)
        if count == 0:
            continue
        if count == -claimed:
            merges.append(best)
            for pair in index.merge(best, tokens.join(best)):
                heapq.heappush(heap, (-index.counts[pair], pair))
        else:
            heapq.heappush(heap, (-count, best))
    return merges


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Let Python not look for cycles among a million pairs and lists, which have none.

    It would do so again and again while they are made, and take a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def encode_chunk(
    ids: list[int], rank_of: Mapping[Pair, int], id_of: Mapping[Pair, int]
) -> list[int]:
    """Merge within one chunk: always the pair of the lowest rank, and the leftmost of equal ones.

    ``rank_of`` and ``id_of`` map a pair to its place in the list of merges, and to the token that
    it makes. One pair is merged at a time: if two merges make the same token, a late one can open
    the way for an earlier one, which then comes first. Short chunks are searched again after each
    merge; long ones (a line of dashes, a word in a language without spaces) use a heap, so that
    time grows with n log n, not n squared.
    """
    if len(ids) >= LONG_CHUNK:
        return _encode_long_chunk(ids, rank_of, id_of)
    last = len(rank_of)  # a rank that no pair has
    while len(ids) > 1:
        ranks = [rank_of.get(pair, last) for pair in pairwise(ids)]
        best = min(ranks)
        if best == last:
            break
        i = ranks.index(best)
        ids = [*ids[:i], id_of[ids[i], ids[i + 1]], *ids[i + 2 :]]
    return ids


def _encode_long_chunk(ids, rank_of, id_of) -> list[int]:
    """``encode_chunk`` with a linked list of tokens and a heap of the pairs that can be merged."""
    ids = list(ids)
    size = len(ids)
    following, previous = list(range(1, size + 1)), list(range(-1, size - 1))
    heap = [(rank_of[pair], i, pair) for i, pair in enumerate(pairwise(ids)) if pair in rank_of]
    heapq.heapify(heap)
    while heap:
        _, left, pair = heapq.heappop(heap)
        right = following[left]
        if right >= size or (ids[left], ids[right]) != pair:
            continue  # one of the two has been merged since
        ids[left], ids[right] = id_of[pair], -1
        following[left] = after = following[right]
        if after < size:
            previous[after] = left
        for start, end in ((previous[left], left), (left, after)):
            if start >= 0 and end < size:
                new_pair = (ids[start], ids[end])
                if new_pair in rank_of:
                    heapq.heappush(heap, (rank_of[new_pair], start, new_pair))
    return [token for token in ids if token >= 0]


def has_surrogates(text: str) -> bool:
    """Whether a text has halves of surrogate pairs, which UTF-8 cannot write."""
    return re.search("[\ud800-\udfff]", text) is not None


def replace_surrogates(text: str) -> str:
    """Halves of surrogate pairs, which UTF-8 cannot write, become U+FFFD, as in tiktoken."""
    if not has_surrogates(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class BPETokenizer:
    """Byte-level BPE: any text can be encoded, and decoding gives it back.

    >>> tokenizer = BPETokenizer.train("low lower lowest " * 10, vocab_size=260)
    >>> tokenizer.decode(tokenizer.encode("a new low"))
    'a new low'
    """

    def __init__(
        self,
        merges: Iterable[Pair],
        special_tokens: Mapping[str, int] | None = None,
        pattern: str = GPT2_SPLIT_PATTERN,
        byte_order: Sequence[int] = range(256),
    ):
        """``merges``: pairs of ids in order of importance; each makes the next token, from 256 on.

        (A pair whose bytes are a token already makes that one.) ``byte_order`` has the byte of each
        of the first 256 ids, and ``pattern`` cuts text into chunks. Raises ``ValueError`` for a
        merge of tokens that do not exist yet, a special token whose id is taken or that no text can
        have, and a pattern that is no regular expression.
        """
        self.pattern = pattern
        self._split = _compile(pattern).findall
        self.byte_order = list(byte_order)
        if sorted(self.byte_order) != list(range(256)):
            raise ValueError("byte_order must have each of the 256 bytes once")
        self._id_of_byte = {byte: token for token, byte in enumerate(self.byte_order)}
        tokens = Tokens(self.byte_order)
        self.merges = [(int(left), int(right)) for left, right in merges]
        self._id_of: dict[Pair, int] = {}
        for number, pair in enumerate(self.merges, start=1):
            if not 0 <= min(pair) <= max(pair) < len(tokens):
                raise ValueError(f"merge {number} joins {pair}: ids must be below {len(tokens)}")
            self._id_of[pair] = tokens.join(pair)
        self._rank_of = {pair: rank for rank, pair in enumerate(self.merges)}
        self.vocab = dict(enumerate(tokens.bytes_of))
        self.special_tokens = {t: int(token_id) for t, token_id in (special_tokens or {}).items()}
        for token, token_id in self.special_tokens.items():
            if token_id in self.vocab or token_id < 0:
                raise ValueError(f"special token {token!r}: id {token_id} is taken or negative")
            if not token or has_surrogates(token):
                raise ValueError(f"no UTF-8 text can have the special token {token!r}")
            self.vocab[token_id] = token.encode("utf-8")
        self._cache: dict[str, list[int]] = {}  # ids of the chunks met so far

    # --- Making one ---

    @classmethod
    def train(
        cls,
        text: str,
        vocab_size: int,
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        pattern: str = GPT2_SPLIT_PATTERN,
        trainer=train_incremental,
    ) -> "BPETokenizer":
        """Learn a vocabulary of at most ``vocab_size`` tokens, special ones included, from a text.

        Special tokens get the last ids, and in the text they are borders. Raises ``ValueError`` if
        256 bytes and the special tokens do not fit.
        """
        special_tokens = list(dict.fromkeys(special_tokens))
        if vocab_size < 256 + len(special_tokens):
            need = 256 + len(special_tokens)
            raise ValueError(
                f"vocab_size is {vocab_size}, but bytes and special tokens need {need}"
            )
        chunks = cls([], pattern=pattern).count_chunks(text, special_tokens)
        with without_garbage_collection():
            merges = trainer(chunks, vocab_size - len(special_tokens))
        first = len(cls(merges, pattern=pattern).vocab)
        specials = {token: first + i for i, token in enumerate(special_tokens)}
        return cls(merges, specials, pattern)

    @classmethod
    def from_openai(cls, bpe_merges_path: str | Path) -> "BPETokenizer":
        """The tokenizer of a file in the format of OpenAI's ``vocab.bpe``.

        Raises ``ValueError`` for a line that is not a pair of known symbols.
        """
        try:
            lines = Path(bpe_merges_path).read_text(encoding="utf-8").split("\n")
            if lines[0].startswith("#version"):
                lines = lines[1:]
            lines = [line for line in lines if line]
            for number, line in enumerate(lines, start=1):
                if len(line.split(" ")) != 2:
                    raise ValueError(f"merge {number} is not a pair: {line[:40]!r}")
            return cls.from_symbols([tuple(line.split(" ")) for line in lines])
        except ValueError as error:
            raise ValueError(f"{bpe_merges_path} is no list of merges: {error}") from None

    @classmethod
    def from_symbols(cls, merges: Iterable[tuple[str, str]]) -> "BPETokenizer":
        """A tokenizer in GPT-2's order of ids, with ``<|endoftext|>`` as the last one."""
        symbols = byte_symbols()
        id_of = {symbol: token for token, symbol in enumerate(symbols.values())}
        pairs = []
        for left, right in merges:
            if left not in id_of or right not in id_of:
                unknown = right if left in id_of else left
                raise ValueError(f"merge {len(pairs) + 1}: {unknown[:40]!r} is not a token so far")
            pairs.append((id_of[left], id_of[right]))
            id_of.setdefault(left + right, len(id_of))
        return cls(pairs, {END_OF_TEXT: len(id_of)}, byte_order=list(symbols))

    # --- Using it ---

    @property
    def n_vocab(self) -> int:
        return max(self.vocab) + 1

    def count_chunks(self, text: str, special_tokens: Iterable[str] = ()) -> Counter[bytes]:
        """The distinct chunks of a text, each with its number, in the order they are first met."""
        counts: Counter[str] = Counter()
        for part in _split_at(replace_surrogates(text), special_tokens):
            if part not in special_tokens:
                counts.update(self._split(part))
        return Counter({chunk.encode("utf-8"): times for chunk, times in counts.items()})

    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are letters like any others."""
        ids: list[int] = []
        for chunk in self._split(replace_surrogates(text)):
            known = self._cache.get(chunk)
            if known is None:
                start = [self._id_of_byte[byte] for byte in chunk.encode("utf-8")]
                known = encode_chunk(start, self._rank_of, self._id_of)
                if len(self._cache) < 100_000 and len(chunk) < LONG_CHUNK:
                    self._cache[chunk] = known
            ids += known
        return ids

    def encode(self, text: str, allowed_special: Collection[str] | str = ()) -> list[int]:
        """Token ids of a text. Special tokens in it count as such if they are allowed.

        ``allowed_special`` has those that are, or is "all". One that is not is a ``ValueError``,
        since it may come from a user who means to fool the model; ``encode_ordinary`` takes it as
        plain text. Of several that begin at one place, the longest is meant.
        """
        allowed = set(self.special_tokens if allowed_special == "all" else allowed_special)
        if unknown := allowed - set(self.special_tokens):
            raise ValueError(f"not special tokens of this tokenizer: {sorted(unknown)}")
        ids: list[int] = []
        for part in _split_at(text, self.special_tokens):
            if part in allowed:
                ids.append(self.special_tokens[part])
            elif part in self.special_tokens:
                raise ValueError(
                    f"the text has the special token {part!r}: allow it with "
                    "allowed_special, or use encode_ordinary to treat it as plain text"
                )
            else:
                ids += self.encode_ordinary(part)
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the tokens, given as a list, an array or a tensor of one dimension.

        Raises ``ValueError`` for an id that is not known.
        """
        ids = plain_ids(ids)
        if unknown := [token for token in ids if token not in self.vocab]:
            raise ValueError(f"id {unknown[0]} is not in the vocabulary of {self.n_vocab} tokens")
        return b"".join(self.vocab[token] for token in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text. Bytes that are not UTF-8 (half a character, say) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # --- Keeping it ---

    def save(self, path: str | Path) -> None:
        """Write everything into one JSON file."""
        content = {
            "format": "llms-from-scratch BPE 1",
            "pattern": self.pattern,
            "byte_order": self.byte_order,
            "merges": self.merges,
            "special_tokens": self.special_tokens,
        }
        with atomic_write(Path(path)) as temporary:
            temporary.write_text(json.dumps(content, indent=None), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "BPETokenizer":
        """Read what ``save`` wrote. Raises ``ValueError`` if the file is something else."""
        content = _read_json(path, dict, "BPETokenizer.save")
        try:
            if content["format"] != "llms-from-scratch BPE 1":
                raise ValueError(f"its format is {content['format']!r:.60}")
            merges, specials = content["merges"], content["special_tokens"]
            return cls(merges, specials, content["pattern"], content["byte_order"])
        except NOT_OURS as error:
            raise ValueError(f"{path} was not written by BPETokenizer.save ({error!r})") from error

    def to_tiktoken(self, name: str = "from-scratch") -> tiktoken.Encoding:
        """The same vocabulary in OpenAI's fast library.

        tiktoken joins two neighbours if the result is a token, by whatever merge that was learned.
        In rare cases this gives other ids than merging learned pairs only.
        """
        specials = set(self.special_tokens.values())
        ranks = {value: token for token, value in self.vocab.items() if token not in specials}
        return tiktoken.Encoding(
            name=name,
            pat_str=self.pattern,
            mergeable_ranks=ranks,
            special_tokens=self.special_tokens,
        )

    def to_tokenizers_json(self) -> str:
        """The content of a ``tokenizer.json`` for Hugging Face's library ``tokenizers``."""
        symbol_of = byte_symbols()

        def written(token: int) -> str:
            return "".join(symbol_of[byte] for byte in self.vocab[token])

        specials = [
            {
                "id": token_id,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token, token_id in self.special_tokens.items()
        ]
        specials_ids = set(self.special_tokens.values())
        vocab = {written(token): token for token in self.vocab if token not in specials_ids}
        content = {
            "version": "1.0",
            "added_tokens": specials,
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": _for_oniguruma(self.pattern)},
                        "behavior": "Isolated",
                        "invert": False,
                    },
                    {
                        "type": "ByteLevel",
                        "add_prefix_space": False,
                        "trim_offsets": False,
                        "use_regex": False,
                    },
                ],
            },
            "post_processor": None,
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": False,
                "use_regex": False,
            },
            "model": {
                "type": "BPE",
                "vocab": vocab | self.special_tokens,
                "merges": [[written(left), written(right)] for left, right in self.merges],
            },
        }
        return json.dumps(content, ensure_ascii=False)


def plain_ids(ids: Iterable[int]) -> list[int]:
    """Ids as a list; ``ValueError`` for what has another shape or other numbers."""
    if hasattr(ids, "tolist"):  # a tensor or an array: its elements would be tensors
        ids = ids.tolist()
    plain = []
    for token in ids if isinstance(ids, Iterable) else [ids]:
        try:
            plain.append(operator.index(token))
        except TypeError:
            hint = ": decode one row at a time" if isinstance(token, list) else ""
            raise ValueError(
                f"ids must be a row of whole numbers, got {token!r:.60}{hint}"
            ) from None
    return plain


# What goes wrong in JSON of another kind; OverflowError is for an Infinity in place of an id
NOT_OURS = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)


def _read_json(path: str | Path, kind: type, writer: str):
    """The dictionary or list in a file; ``ValueError`` if there is something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} was not written by {writer} ({error!r:.200})") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} was not written by {writer} (it holds {content!r:.60})")
    return content


def _compile(pattern: str):
    import regex  # knows \p{L} and possessive quantifiers; tiktoken depends on it

    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from error


def _for_oniguruma(pattern: str) -> str:
    """The pattern for the regular expressions of ``tokenizers``.

    There, "$" is the end of any line, and "++" is no possessive quantifier (which saves time, and
    changes no result here).
    """
    return re.sub(r"(?<=[}\])sS])\+\+", "+", pattern).replace("$", r"\z")


def _split_at(text: str, tokens: Iterable[str]) -> list[str]:
    """Cut a text at special tokens, the longest first; they are parts of their own."""
    tokens = sorted(tokens, key=len, reverse=True)
    if not tokens:
        return [text]
    return [part for part in re.split(f"({'|'.join(map(re.escape, tokens))})", text) if part]


def gpt2_bpe_tokenizer() -> BPETokenizer:
    """GPT-2's tokenizer, from the table that comes with this package."""
    return BPETokenizer.from_symbols(gpt2_merges())


# --- The book's class ---


class BPETokenizerSimple:
    """The book's tokenizer: trained on characters, or with GPT-2's tables.

    Attributes: ``vocab`` (id to string), ``inverse_vocab`` (string to id), ``bpe_merges`` (pair of
    ids to id; trained), ``bpe_ranks`` (pair of strings to rank; loaded from OpenAI's files),
    ``special_tokens`` (strings). A space in front of a word is written as "Ġ" at its beginning.
    """

    def __init__(self):
        self.vocab: dict[int, str] = {}
        self.inverse_vocab: dict[str, int] = {}
        self.bpe_merges: dict[Pair, int] = {}
        self.bpe_ranks: dict[tuple[str, str], int] = {}
        self.special_tokens: set[str] = set()
        self._gpt2: BPETokenizer | None = None

    @staticmethod
    def pretokenize_text(text: str) -> list[str]:
        """Words with the space before them, written as "Ġ"; line breaks and further spaces alone.

        >>> BPETokenizerSimple.pretokenize_text("a new  day")
        ['a', 'Ġnew', 'Ġ', 'Ġday']
        """
        if SPACE in text:
            raise ValueError(f"the text has the character {SPACE!r}, which stands for a space here")
        if has_surrogates(text):
            raise ValueError("the text has half of a surrogate pair, which no UTF-8 file can hold")
        return [word.replace(" ", SPACE) for word in re.findall(r"[\r\n]| ?[^ \r\n]+| ", text)]

    @staticmethod
    def find_freq_pair(token_ids, mode: str = "most") -> Pair | None:
        """The most (or "least") frequent pair of neighbours, the first met of several; or None.

        ``token_ids`` is a list of ids, or a list of such lists. Raises ``ValueError`` for another
        mode.
        """
        if mode not in ("most", "least"):
            raise ValueError(f"mode is {mode!r}, must be 'most' or 'least'")
        sequences = [token_ids] if token_ids and isinstance(token_ids[0], int) else token_ids
        counts = Counter(pair for sequence in sequences for pair in pairwise(sequence))
        choose = max if mode == "most" else min
        return choose(counts, key=counts.get, default=None)

    @staticmethod
    def replace_pair(token_ids, pair_id: Pair, new_id: int) -> list:
        """Replace the pair by ``new_id`` in a list of ids, or in each of a list of lists."""
        if token_ids and not isinstance(token_ids[0], int):
            return [merge_pair(sequence, pair_id, new_id) for sequence in token_ids]
        return merge_pair(token_ids, pair_id, new_id)

    def train(
        self, text: str, vocab_size: int, allowed_special: Iterable[str] = (END_OF_TEXT,)
    ) -> None:
        """Learn a vocabulary: 256 characters, others of the text, special tokens, then merges.

        The most frequent pair is merged, the first met in the text if there are several. Raises
        ``ValueError`` if ``vocab_size`` has no room for the characters, and for a special token of
        fewer than two characters or with "Ġ": it could not be told from other tokens.
        """
        words = Counter(self.pretokenize_text(text))  # in the order they are first met
        characters = [chr(code) for code in range(256)]
        others = set("".join(words)) - set(characters) - {SPACE}
        characters += [*sorted(others), SPACE]
        specials = list(dict.fromkeys(allowed_special))
        for token in specials:
            if len(token) < 2 or SPACE in token or has_surrogates(token):
                raise ValueError(f"a special token needs two characters, none {SPACE!r}: {token!r}")
        start = [*characters, *specials]
        if vocab_size < len(start):
            raise ValueError(
                f"vocab_size is {vocab_size}, characters and special tokens need {len(start)}"
            )
        self.__init__()
        self.special_tokens = set(specials)
        self.vocab = dict(enumerate(start))
        self.inverse_vocab = {token: token_id for token_id, token in self.vocab.items()}
        chunks = {tuple(self.inverse_vocab[c] for c in word): n for word, n in words.items()}
        while len(self.vocab) < vocab_size:
            counts = count_pairs(chunks)
            if not counts:
                break
            pair = max(counts, key=counts.get)  # max keeps the first of equals
            new_id = len(self.vocab)
            self.bpe_merges[pair] = new_id
            self.vocab[new_id] = self.vocab[pair[0]] + self.vocab[pair[1]]
            self.inverse_vocab.setdefault(self.vocab[new_id], new_id)
            chunks = {tuple(merge_pair(ids, pair, new_id)): n for ids, n in chunks.items()}

    def load_vocab_and_merges_from_openai(
        self, vocab_path: str | Path, bpe_merges_path: str | Path
    ) -> None:
        """Use GPT-2's ``encoder.json`` and ``vocab.bpe``: then ids are those of GPT-2.

        Raises ``ValueError`` if the two files do not belong together.
        """
        inverse = _read_json(vocab_path, dict, "OpenAI")
        tokenizer = BPETokenizer.from_openai(bpe_merges_path)
        try:
            self._use_openai_tables(inverse, tokenizer)
        except ValueError as error:
            raise ValueError(f"{vocab_path} and {bpe_merges_path} disagree: {error}") from None

    def _use_openai_tables(self, inverse: dict[str, int], tokenizer: BPETokenizer) -> None:
        symbol_of = byte_symbols()
        for token, value in tokenizer.vocab.items():
            symbol = "".join(symbol_of[byte] for byte in value)
            if token not in (inverse.get(symbol), inverse.get(value.decode(errors="replace"))):
                raise ValueError(f"token {token} should be {symbol!r}")
        self.__init__()
        self._gpt2 = tokenizer
        self.vocab = {token_id: token for token, token_id in inverse.items()}
        self.inverse_vocab = inverse | {"\n": inverse["Ċ"], "\r": inverse["č"]}
        self.special_tokens = set(tokenizer.special_tokens)
        pairs = [(self.vocab[left], self.vocab[right]) for left, right in tokenizer.merges]
        self.bpe_ranks = {pair: rank for rank, pair in enumerate(pairs)}

    def encode(self, text: str, allowed_special: Collection[str] | None = None) -> list[int]:
        """Token ids of a text. Special tokens in it are an error unless they are allowed."""
        if self._gpt2 is not None:
            return self._gpt2.encode(text, allowed_special or ())
        allowed = set(allowed_special or ())
        ids: list[int] = []
        for part in _split_at(text, allowed | self.special_tokens):
            if part in allowed:
                ids.append(self.get_special_token_id(part))
                continue
            if part in self.special_tokens:
                raise ValueError(f"the text has {part!r}: allow it with allowed_special")
            for word in self.pretokenize_text(part):
                known = self.inverse_vocab.get(word)
                ids += self.tokenize_with_bpe(word) if known is None else [known]
        return ids

    def tokenize_with_bpe(self, token: str, by_rank: bool = False) -> list[int]:
        """Ids of a word that is not in the vocabulary.

        The book's way passes over the word from left to right and merges whatever can be merged,
        until nothing can. ``by_rank=True`` merges in the order in which merges were learned, as
        GPT-2 does; on most texts this gives fewer tokens. Raises ``ValueError`` for a character
        that was not in the training text.
        """
        if unknown := [c for c in token if c not in self.inverse_vocab]:
            raise ValueError(f"not in the vocabulary: {unknown}; train on a text that has them")
        ids = [self.inverse_vocab[character] for character in token]
        if by_rank:
            ranks = {pair: rank for rank, pair in enumerate(self.bpe_merges)}
            return encode_chunk(ids, ranks, self.bpe_merges)
        merged_any = True
        while merged_any:
            merged_any, i, merged = False, 0, []
            while i < len(ids):
                pair = tuple(ids[i : i + 2])
                if pair in self.bpe_merges:
                    merged.append(self.bpe_merges[pair])
                    merged_any = True
                    i += 2
                else:
                    merged.append(ids[i])
                    i += 1
            ids = merged
        return ids

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text. Raises ``ValueError`` for an id that is not in the vocabulary."""
        if self._gpt2 is not None:
            return self._gpt2.decode(token_ids)
        token_ids = plain_ids(token_ids)
        if unknown := [token_id for token_id in token_ids if token_id not in self.vocab]:
            raise ValueError(f"id {unknown[0]} is not in the vocabulary")
        return "".join(self.vocab[token_id] for token_id in token_ids).replace(SPACE, " ")

    def get_special_token_id(self, token: str) -> int:
        """The id of a special token. Raises ``ValueError`` if there is none."""
        if token not in self.inverse_vocab:
            raise ValueError(f"{token!r} is not in the vocabulary")
        return self.inverse_vocab[token]

    def save_vocab_and_merges(self, vocab_path: str | Path, bpe_merges_path: str | Path) -> None:
        """Write what was learned, or loaded from OpenAI's files, into two JSON files."""
        merges = [{"pair": list(pair), "new_id": new} for pair, new in self.bpe_merges.items()]
        merges += [{"pair": list(pair), "rank": rank} for pair, rank in self.bpe_ranks.items()]
        for path, content in ((vocab_path, self.vocab), (bpe_merges_path, merges)):
            with atomic_write(Path(path)) as temporary:
                text = json.dumps(content, ensure_ascii=False, indent=2)
                temporary.write_text(text, encoding="utf-8")

    def load_vocab_and_merges(self, vocab_path: str | Path, bpe_merges_path: str | Path) -> None:
        """Read what ``save_vocab_and_merges`` wrote; ``ValueError`` if it is something else."""
        writer = "save_vocab_and_merges"
        vocab = _read_json(vocab_path, dict, writer)
        merges = _read_json(bpe_merges_path, list, writer)
        try:
            vocab = {int(token_id): token for token_id, token in vocab.items()}
            if merges and "rank" in merges[0]:
                pairs = [tuple(merge["pair"]) for merge in merges]
                inverse = {token: token_id for token_id, token in vocab.items()}
                return self._use_openai_tables(inverse, BPETokenizer.from_symbols(pairs))
            self._use_learned_tables(vocab, {tuple(m["pair"]): m["new_id"] for m in merges})
        except NOT_OURS as error:
            raise ValueError(
                f"{vocab_path} and {bpe_merges_path} were not written by {writer} ({error!r})"
            ) from error

    def _use_learned_tables(self, vocab: dict[int, str], merges: dict[Pair, int]) -> None:
        for (left, right), new_id in merges.items():
            if vocab[new_id] != vocab[left] + vocab[right]:
                raise ValueError(f"token {new_id} is not what {left} and {right} make")
        self.__init__()
        self.vocab, self.bpe_merges = vocab, merges
        for token_id, token in vocab.items():
            self.inverse_vocab.setdefault(token, token_id)
        learned = set(merges.values())
        self.special_tokens = {t for i, t in vocab.items() if len(t) > 1 and i not in learned}
