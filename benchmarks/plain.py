"""The plain way to write Forward-Forward training, to compare with: what most public implementations do.

A data set writes the labels into one image at a time, a data loader stacks them, and autograd differentiates the sum of
all layers' losses in fp32. Negatives are uniform.
"""

import os
import time
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from src.datasets.batches import Examples

WARM_UP = 3  # batches that do not count


class LabelledImages(Dataset):
    """Each image three times: with its true label, with a wrong one, and with the neutral code."""

    def __init__(self, examples: Examples):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        classes = self.examples.classes
        image = self.examples.images[index].float() / 255
        label = self.examples.labels[index]
        wrong = (label + torch.randint(1, classes, ())) % classes
        positive, negative, neutral = image.clone(), image.clone(), image.clone()
        positive[:classes] = F.one_hot(label, classes).float()
        negative[:classes] = F.one_hot(wrong, classes).float()
        neutral[:classes] = 1 / classes
        return positive, negative, neutral, label


class PlainNet(nn.Module):
    """Layers of these sizes, the image's first, and a read-out."""

    def __init__(self, dims: list[int], classes: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        self.readout = nn.Linear(sum(dims[2:]), classes, bias=False)

    @staticmethod
    def normalise(x: Tensor) -> Tensor:
        return x / (x.square().mean(dim=1, keepdim=True).sqrt() + 1e-8)

    def loss(self, positive: Tensor, negative: Tensor, neutral: Tensor, labels: Tensor) -> Tensor:
        """The sum of the layers' losses and the read-out's cross-entropy."""
        total, features = torch.zeros((), device=labels.device), []
        for layer in self.layers:
            positive, negative, neutral = (
                F.relu(layer(self.normalise(x.detach()))) for x in (positive, negative, neutral)
            )
            logits = torch.cat([h.square().sum(dim=1) - h.shape[1] for h in (positive, negative)])
            targets = torch.cat([torch.ones_like(labels), torch.zeros_like(labels)]).float()
            total = total + F.binary_cross_entropy_with_logits(logits, targets)
            features.append(self.normalise(neutral).detach())
        return total + F.cross_entropy(self.readout(torch.cat(features[1:], dim=1)), labels)


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all it was given, so that the clock can be read."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def seconds_per_image(examples: Examples, hidden_dims: list[int], batch_size: int) -> dict[str, float]:
    """Of training on the device of `examples`, without loader processes and with one for each core, up to eight."""
    device = examples.labels.device
    seconds = {}
    for workers in (0, min(8, os.cpu_count() or 1)):
        net = PlainNet([examples.shape.size, *hidden_dims], examples.classes).to(device)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=3e-4)
        images = LabelledImages(examples.to("cpu"))
        loader = DataLoader(images, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=workers)
        for index, batch in enumerate(loader):
            if index == WARM_UP:
                synchronise(device)
                started = time.perf_counter()
            optimizer.zero_grad()
            net.loss(*(part.to(device) for part in batch)).backward()
            optimizer.step()
        synchronise(device)
        seconds[f"{workers} loader processes"] = (time.perf_counter() - started) / (
            (len(loader) - WARM_UP) * batch_size
        )
    return seconds
