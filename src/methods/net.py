"""What the nets of all methods have in common."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from src.config.values import Model, Training
from src.layers.fields import Map
from src.training.epochs import Phase


class Net(nn.Module):
    """A net that knows what images it is for; a method's is made by `Net(model, shape, classes, ...)` of its module.

    Args:
        shape: of the images; classes: how many there are. Both are kept with its weights, as the buffer `sizes`.

    Raises ConfigError if `model` does not go with such images.
    """

    def __init__(self, model: Model, shape: Map, classes: int):
        super().__init__()
        model.check_images(shape, classes)
        self.shape, self.classes = shape, classes
        self.register_buffer("sizes", torch.tensor([*shape, classes]))
        self.standardise = getattr(model, "standardise", False)
        if self.standardise:
            self.register_buffer("pixel_mean", torch.zeros(shape.channels))
            self.register_buffer("pixel_std", torch.ones(shape.channels))

    def prepare(self, images: Tensor) -> None:
        """Keeps the mean and the standard deviation of each channel, if the net asks for them (uint8 [N, D])."""
        if self.standardise:
            counts = torch.stack(
                [channel.flatten().bincount(minlength=256) for channel in images.view(-1, self.shape.channels).T]
            )
            value = torch.arange(256, device=images.device) / 255
            share = counts / counts.sum(dim=1, keepdim=True)  # of each value in each channel: [channels, 256]
            self.pixel_mean.copy_(share @ value)
            std = (share * (value - self.pixel_mean[:, None]).square()).sum(dim=1).sqrt()
            self.pixel_std.copy_(torch.where(std > 0, std, 1))  # of a channel that is constant

    def standardised(self, images: Tensor) -> Tensor:
        """Images in [0, 1] ([B, D]) with mean 0 and standard deviation 1 in each channel of the training images."""
        if not self.standardise:
            return images
        return ((images.unflatten(1, (-1, self.shape.channels)) - self.pixel_mean) / self.pixel_std).flatten(1)

    def checked(self, images: Tensor) -> Tensor:
        """The same images. Raises ValueError if they are bytes."""
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}, but should be floats in [0, 1], as to_unit makes of bytes")
        return images

    @abstractmethod
    def phases(self, training: Training) -> list[Phase]:
        """What is trained, in order, with which update and which optimiser."""

    @abstractmethod
    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """The score of every class by every rule to classify, "goodness" or "one_pass" among them.

        Images in [0, 1], [B, shape.size] -> each [B, classes]. Raises ValueError as `checked` does.
        """


def together(*scores: Tensor) -> Tensor:
    """The sum of scores by several rules, each with mean 0 and standard deviation 1 over the labels (each [B, K])."""
    parts = [(each, *torch.std_mean(each, dim=1, keepdim=True)) for each in scores]
    return sum((each - mean) / (deviation + 1e-8) for each, deviation, mean in parts)
