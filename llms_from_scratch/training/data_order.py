"""In which order the examples come, and which of them each process reads.

All processes go through the same batches in the same order; of each batch, a process takes its own
rows, and reads no others. So the batches are those of one process, for any number of them.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from torch.utils.data import DataLoader, Sampler


class SeededOrder(Sampler):
    """A new order of ``length`` examples for each epoch, from the seed and the epoch alone.

    It is one tensor: a list of as many Python numbers would take five times the memory.

    >>> order = SeededOrder(5, seed=123)
    >>> list(order) == list(order), sorted(order)
    (True, [0, 1, 2, 3, 4])
    """

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        for part in torch.randperm(self.length, generator=generator).split(4096):
            yield from part.tolist()


class RankBatches(Sampler):
    """The rows of one process, number ``rank`` of ``size``, in each batch of ``batches``.

    A batch with fewer rows than there are processes, the last one of a validation set say, is given
    to each of them whole.

    >>> batches = torch.utils.data.BatchSampler(range(9), batch_size=4, drop_last=False)
    >>> list(RankBatches(batches, rank=1, size=2)), list(RankBatches(batches, rank=0, size=2))
    ([[1, 3], [5, 7], [8]], [[0, 2], [4, 6], [8]])
    """

    def __init__(self, batches: Sampler, rank: int = 0, size: int = 1):
        self.batches, self.rank, self.size = batches, rank, size
        self.batch_size = getattr(batches, "batch_size", None)  # rows of all processes together
        self.first = 0

    def start_at(self, number: int) -> None:
        """Leave out the batches before this one, the next time only, without reading them."""
        self.first = number

    def set_epoch(self, epoch: int) -> None:
        sampler = getattr(self.batches, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        first, self.first = self.first, 0
        return (self._own(rows) for rows in islice(iter(self.batches), first, None))

    def _own(self, rows: list[int]) -> list[int]:
        return rows if len(rows) < self.size else rows[self.rank :: self.size]


def deal(loader: DataLoader, rank: int = 0, size: int = 1) -> DataLoader:
    """A loader of the same batches that reads the rows of one process only."""
    return DataLoader(
        loader.dataset,
        batch_sampler=RankBatches(loader.batch_sampler, rank, size),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        persistent_workers=loader.persistent_workers,
    )
