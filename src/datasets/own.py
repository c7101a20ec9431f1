"""People's own arrays in an .npz file, or pictures in folders."""

import random
from pathlib import Path
from typing import Any

import numpy as np

from src.datasets.idx import DataError

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def read_npz(path: Path, _: Any) -> list[np.ndarray]:
    """ARRAYS, as they are in the file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in ARRAYS]
    except Exception as error:  # of a dozen kinds, where the file is damaged or something else
        reason = str(error).partition(". ")[0]
        raise DataError(f"{path} should be an .npz file with the arrays {', '.join(ARRAYS)}: {reason}") from error


def read_folder(root: Path, _: Any) -> list[np.ndarray]:
    """ARRAYS of the pictures train/CLASS/NAME.png and test/CLASS/NAME.png, or .jpg, in an order drawn once.

    Classes are numbered in the order of their names. Images are [N, H, W, 1] if all are grey, else [N, H, W, 3].
    """
    arrays, classes = [], []
    for side in ("train", "test"):
        paths = sorted(root.glob(f"{side}/[!.]*/[!.]*"))
        paths = [path for path in paths if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
        random.Random(0).shuffle(paths)  # or the last ones, held out to validate on, would be of one class
        images = [_pixels(path) for path in paths]
        sizes = {"{1} x {0}".format(*image.shape): path for image, path in zip(images, paths, strict=True)}
        if len(sizes) != 1:
            found = ", ".join(f"{path} has {size}" for size, path in list(sizes.items())[:2]) or "there are none"
            raise DataError(f"{root} should hold pictures {side}/CLASS/NAME.png, or .jpg, all of one size; {found}")
        names, labels = np.unique([path.parent.name for path in paths], return_inverse=True)
        arrays += [np.stack(images), labels]
        classes.append(set(names.tolist()))
    if odd := classes[0] ^ classes[1]:
        side = "test" if min(odd) in classes[0] else "train"
        raise DataError(f"{root} should hold each class in train and in test; there are no pictures {side}/{min(odd)}")
    grey = all((images == images[..., :1]).all() for images in arrays[::2])
    return [array[..., :1] if grey and array.ndim == 4 else array for array in arrays]


def _pixels(path: Path) -> np.ndarray:
    """uint8 [H, W, 3], in a grey picture three times the same."""
    from PIL import Image  # not at the top: other data do without

    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ValueError("it has more than 8 bits a pixel")
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # of a dozen kinds, too
        raise DataError(f"{path} cannot be used as a picture: {error}") from error
