"""What the nets of all methods have in common."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from src.config.values import Model, Training
from src.layers.connections import Map
from src.training.epochs import Phase


class Net(nn.Module):
    """A net that knows what images it is for; a method's is made by `Net(model, shape, classes, ...)` of its module.

    Args:
        shape: of the images; classes: how many there are. Both are kept with its weights, as the buffer `sizes`.

    Raises:
        ConfigError: `model` does not go with such images.
    """

    def __init__(self, model: Model, shape: Map, classes: int):
        super().__init__()
        model.check_images(shape, classes)
        self.shape, self.classes = shape, classes
        self.register_buffer("sizes", torch.tensor([*shape, classes]))

    @abstractmethod
    def phases(self, training: Training) -> list[Phase]:
        """What is trained, in order, with which update and which optimiser."""

    @abstractmethod
    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """The score of every class by every rule to classify, the paper's rule first.

        Images in [0, 1], [B, shape.size] -> each [B, classes].
        """
