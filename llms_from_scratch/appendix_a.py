"""Appendix A: a small neural network, its data, and its training by one or several processes."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from llms_from_scratch.training.distributed import ddp_setup, sum_over_ranks


class NeuralNetwork(nn.Module):
    """A multilayer perceptron with two hidden layers of 30 and 20 units (section A.5).

    Maps (b, num_inputs) to logits of shape (b, num_outputs).
    """

    def __init__(self, num_inputs: int, num_outputs: int):
        super().__init__()
        self.layers = nn.Sequential(
            # first hidden layer
            nn.Linear(num_inputs, 30),
            nn.ReLU(),
            # second hidden layer
            nn.Linear(30, 20),
            nn.ReLU(),
            # output layer
            nn.Linear(20, num_outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # (b, num_outputs)


class ToyDataset(Dataset):
    """Pairs of features and a label (section A.6): ``X`` is (n, num_features), ``y`` is (n,)."""

    def __init__(self, X: torch.Tensor, y: torch.Tensor):
        if len(X) != len(y):
            raise ValueError(f"{len(X)} rows of features, but {len(y)} labels")
        self.features = X
        self.labels = y

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features[index], self.labels[index]


def count_correct(
    model: nn.Module, dataloader: Iterable, device: torch.device | str = "cpu"
) -> tuple[int, int]:
    """Right predictions and examples of a loader; the model's mode stays as it was."""
    was_training = model.training
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for features, labels in dataloader:
            features, labels = features.to(device), labels.to(device)
            predictions = model(features).argmax(dim=1)  # (b,)
            correct += (predictions == labels).sum().item()
            total += len(labels)
    model.train(was_training)
    return correct, total


def compute_accuracy(
    model: nn.Module, dataloader: Iterable, device: torch.device | str = "cpu"
) -> float:
    """Share of right predictions, from 0 to 1 (section A.7); NaN if there are no examples."""
    correct, total = count_correct(model, dataloader, device)
    return correct / total if total else float("nan")


def toy_datasets(copies: int = 1) -> tuple[ToyDataset, ToyDataset]:
    """The five training points and the two test points of section A.6.

    The first of several ``copies`` of the training points is exact, the others are moved a little.
    """
    X_train = torch.tensor([[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]])
    y_train = torch.tensor([0, 0, 0, 1, 1])
    X_test = torch.tensor([[-0.8, 2.8], [2.6, -1.6]])
    y_test = torch.tensor([0, 1])

    generator = torch.Generator().manual_seed(123)
    moved = [torch.randn(X_train.shape, generator=generator) for _ in range(copies - 1)]
    X_train = torch.cat([X_train] + [X_train + 0.1 * move for move in moved])  # (5 * copies, 2)
    return ToyDataset(X_train, y_train.repeat(copies)), ToyDataset(X_test, y_test)


# Section A.9.3: what follows runs in each process of the DDP scripts


COPIES = 4  # of the 5 training points: enough for 8 ranks


def check_share(world_size: int, batch_size: int) -> None:
    """Raise ``ValueError`` if there are too few training points for so many ranks."""
    num_points = 5 * COPIES
    if num_points // world_size < batch_size:
        raise ValueError(
            f"{num_points} training points do not fill a batch of {batch_size} for each of "
            f"{world_size} ranks: use fewer processes or a smaller batch"
        )


def prepare_dataset(batch_size: int = 2) -> tuple[DataLoader, DataLoader]:
    """This rank's share of the training points and of the test points, as loaders.

    All ranks together see ``batch_size * world_size`` different training points per step. Raises
    ``ValueError`` if there are fewer than that.
    """
    check_share(dist.get_world_size(), batch_size)
    train_ds, test_ds = toy_datasets(copies=COPIES)
    # Shuffles with the same seed in all ranks, then deals the points out like cards
    sampler = DistributedSampler(train_ds, seed=123, drop_last=True)
    train_loader = DataLoader(train_ds, batch_size=batch_size, sampler=sampler, drop_last=True)
    return train_loader, own_share(test_ds, batch_size)


def own_share(dataset: Dataset, batch_size: int) -> DataLoader:
    """Each example goes to exactly one rank, so that an accuracy counts none twice.

    With few examples the shares have different sizes, and some may be empty.
    """
    indices = range(dist.get_rank(), len(dataset), dist.get_world_size())
    return DataLoader(Subset(dataset, indices), batch_size=batch_size)


def train_one_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_loader: Iterable,
    device: torch.device | str,
) -> tuple[int, float]:
    """One pass over this rank's points. Returns the last batch's size and its loss."""
    model.train()
    for features, labels in train_loader:
        features, labels = features.to(device), labels.to(device)
        loss = F.cross_entropy(model(features), labels)
        optimizer.zero_grad()
        loss.backward()  # also averages the gradients over all ranks
        optimizer.step()  # so all ranks take the same step
    return len(labels), loss.item()


def print_accuracy(name: str, model: nn.Module, loader: Iterable, device) -> None:
    """Rank 0 prints the accuracy over the points of all ranks together."""
    correct, total = sum_over_ranks(count_correct(model, loader, device), device)
    if dist.get_rank() == 0:
        print(f"{name} accuracy: {correct / total:.2f} ({correct:.0f} of {total:.0f} points)")


def main(
    rank: int,
    world_size: int,
    num_epochs: int,
    batch_size: int = 2,
    save_to: str | Path | None = None,
) -> None:
    """Train the toy network as process ``rank`` of ``world_size``; rank 0 reports and saves."""
    device = ddp_setup(rank, world_size)
    torch.manual_seed(123)  # in each process: the random numbers of the parent are not inherited
    train_loader, test_loader = prepare_dataset(batch_size)
    network = NeuralNetwork(num_inputs=2, num_outputs=2).to(device)
    model = DistributedDataParallel(network)  # starts all ranks with the weights of rank 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    for epoch in range(num_epochs):
        train_loader.sampler.set_epoch(epoch)  # a new order in each epoch, the same in all ranks
        size, loss = train_one_epoch(model, optimizer, train_loader, device)
        text = f"Epoch: {epoch + 1:03d}/{num_epochs:03d} | Batch size: {size}"
        # Text and line break in one piece, or the lines of two ranks may mix
        print(f"[Rank {rank}] {text} | Train loss: {loss:.2f}\n", end="", flush=True)

    # The network itself: the wrapper would expect the same number of batches in all ranks
    print_accuracy("Training", network, own_share(train_loader.dataset, batch_size), device)
    print_accuracy("Test", network, test_loader, device)
    if rank == 0 and save_to:
        torch.save(network.state_dict(), save_to)  # all ranks have the same weights
    dist.destroy_process_group()
