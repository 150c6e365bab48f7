"""Token ids on disk, for texts that are too long to tokenize at each start or to keep in memory."""

import json
import mmap
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from tqdm import tqdm

from llms_from_scratch.data import load_text
from llms_from_scratch.data.files import atomic_write, sha256_of
from llms_from_scratch.tokenizer import END_OF_TEXT
from llms_from_scratch.training.checkpoint import describe_vocabulary
from llms_from_scratch.training.data_order import SeededOrder


def tokenize_folder(folder: str | Path, token_folder: str | Path, tokenizer) -> list[Path]:
    """Token files of all ``.txt`` files below a folder, made now unless they are there already."""
    folder = Path(folder)
    texts = sorted(folder.rglob("*.txt"))
    if not texts:
        raise ValueError(f"there are no .txt files below {folder}: see prepare_dataset.py")
    return [
        tokenize_file(
            path,
            Path(token_folder, "-".join(path.relative_to(folder).with_suffix(".npy").parts)),
            tokenizer,
        )
        for path in tqdm(texts, desc="Tokenizing", unit="file")
    ]


def tokenize_file(text_path: str | Path, token_path: str | Path, tokenizer) -> Path:
    """Write the token ids of a UTF-8 text, and an end-of-text token, as a NumPy array.

    Beside it, a JSON file says what it was made from: the text's hash and size, and the vocabulary.
    If that is the same and the array is whole, nothing is done. Ids take 2 bytes each, or 4 if the
    vocabulary has more than 65,536 tokens.
    """
    text_path, token_path = Path(text_path), Path(token_path)
    origin = {
        "text_sha256": sha256_of(text_path),
        "text_bytes": text_path.stat().st_size,
        "vocabulary": describe_vocabulary(tokenizer),
    }
    if _read_origin(token_path) == origin:
        return token_path
    token_ids = tokenizer.encode(load_text(text_path), allowed_special={END_OF_TEXT})
    token_ids.append(tokenizer.eot_token)
    dtype = np.uint16 if tokenizer.n_vocab <= 1 << 16 else np.uint32
    token_path.parent.mkdir(parents=True, exist_ok=True)
    description = _description_of(token_path)
    description.unlink(missing_ok=True)  # never beside tokens that it does not describe
    with atomic_write(token_path) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(token_ids, dtype=dtype))
    with atomic_write(description) as temporary:
        content = {**origin, "tokens": len(token_ids)}
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return token_path


def _description_of(token_path: Path) -> Path:
    return token_path.with_name(token_path.name + ".json")


def _read_origin(token_path: Path) -> dict | None:
    """What a token file was made from; None if that is not known, or the file is not whole."""
    try:
        origin = json.loads(_description_of(token_path).read_text(encoding="utf-8"))
        num_tokens = origin.pop("tokens")
        return origin if len(open_token_file(token_path)) == num_tokens else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def open_token_file(path: Path) -> np.ndarray:
    """The token ids of a file as an array that stays on the disk, shape (num_tokens,).

    Raises ``ValueError`` if the file is cut, or holds something else.
    """
    try:
        tokens = np.load(path, mmap_mode="r")
    except OSError:  # it is absent, say: that is no damage
        raise
    except Exception as error:  # one wrong bit makes it a zip archive, or no Python in its header
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no whole token file ({reason:.200})") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.kind != "u":
        raise ValueError(f"{path} is no whole token file: it has no row of unsigned numbers")
    return tokens


def _give_back_pages(tokens: np.ndarray) -> None:
    """Let the system count what was read as its cache, no longer as memory of this process.

    Otherwise it grows with each window until the whole file is in it. Windows cannot.
    """
    while isinstance(tokens, np.ndarray):
        tokens = tokens.base  # a view of a view of ... the file
    if isinstance(tokens, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        tokens.madvise(mmap.MADV_DONTNEED)


class TokenFileDataset(Dataset):
    """Sliding windows over a part of a token file, which stays on the disk.

    ``start`` and ``end`` are fractions of the file. Items are as in ``GPTDatasetV1``: two long
    tensors of shape (max_length,), the second one token ahead. A process that gets a copy (a worker
    of a ``DataLoader``) gets the file's name and opens it itself. Raises ``ValueError`` for a file
    that ``tokenize_file`` did not write.
    """

    def __init__(
        self,
        token_path: str | Path,
        max_length: int,
        stride: int,
        start: float = 0.0,
        end: float = 1.0,
    ):
        if max_length < 1 or stride < 1:
            raise ValueError(f"max_length and stride must be at least 1: {max_length=}, {stride=}")
        self.token_path = Path(token_path).absolute()
        self.fractions = (start, end)
        self.max_length, self.stride = max_length, stride
        self._open()

    def _open(self) -> None:
        tokens = open_token_file(self.token_path)
        start, end = (int(fraction * len(tokens)) for fraction in self.fractions)
        self.num_tokens_in_file = len(tokens)
        self.tokens = tokens[start:end]

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "tokens"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        expected = self.num_tokens_in_file
        self._open()
        if self.num_tokens_in_file != expected:
            found = self.num_tokens_in_file
            raise ValueError(
                f"{self.token_path} was replaced: it has {found} tokens, had {expected}"
            )

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - self.max_length - 1) // self.stride + 1)

    def __getitem__(self, idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= idx < len(self):
            raise IndexError(f"window {idx} of {len(self)}")
        first = idx * self.stride
        window = self.tokens[first : first + self.max_length + 1].astype(np.int64)
        window = torch.from_numpy(window)  # (max_length + 1,)
        _give_back_pages(self.tokens)
        return window[:-1], window[1:]


def create_dataloaders(
    token_paths: list[Path],
    train_ratio: float,
    batch_size: int,
    max_length: int,
    stride: int,
    num_workers: int = 0,
    seed: int | None = None,
) -> tuple[DataLoader, DataLoader]:
    """Loaders for training and validation: the beginning and the rest of each file.

    With a ``seed``, the order of the training windows depends on it and on the epoch alone, else
    on PyTorch's random numbers.
    Raises ``ValueError`` if either part does not fill a single window.
    """
    loaders = []
    for name, start, end in (("training", 0.0, train_ratio), ("validation", train_ratio, 1.0)):
        parts = [TokenFileDataset(path, max_length, stride, start, end) for path in token_paths]
        windows = ConcatDataset(parts)
        if len(windows) == 0:
            raise ValueError(
                f"the {name} part of the texts has less than one window of {max_length} tokens: "
                "use more text or a shorter context"
            )
        is_training = name == "training"
        seeded = is_training and seed is not None
        loaders.append(
            DataLoader(
                windows,
                batch_size=batch_size,
                shuffle=is_training and not seeded,
                sampler=SeededOrder(len(windows), seed) if seeded else None,
                drop_last=is_training and len(windows) >= batch_size,
                num_workers=num_workers,
            )
        )
    return loaders[0], loaders[1]
