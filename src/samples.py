"""Positives and negatives: label codes over the first ten pixels (section 3.3), and hybrid images (section 3.2).

All functions are pure; whatever is random takes its generator as an argument.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_CLASSES = 10


def embed(images: Tensor, code: Tensor) -> Tensor:
    """A copy of `images` ([B, D], pixels in [0, 1]) whose pixels 0..9 hold `code` ([B, 10] or [10])."""
    return torch.cat([code.expand(len(images), NUM_CLASSES), images[:, NUM_CLASSES:]], dim=1)


def embed_label(images: Tensor, labels: Tensor) -> Tensor:
    """Images ([B, D]) with the one-hot code of `labels` ([B], int64): positive if true, negative if wrong."""
    return embed(images, F.one_hot(labels, NUM_CLASSES).to(images.dtype))


def embed_neutral(images: Tensor) -> Tensor:
    """Images ([B, D]) with the neutral code, ten entries of 0.1, which favours no label (section 3.3)."""
    return embed(images, images.new_full((NUM_CLASSES,), 1 / NUM_CLASSES))


def hard_negative_labels(logits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Wrong labels ([B]) sampled from the read-out's prediction with the true class masked out (section 3.3).

    `logits` ([B, 10]) come from the neutral pass. The wrong classes the net finds likely are drawn often, which
    the paper says needs about a third of the epochs that uniform wrong labels need.
    """
    true_class = F.one_hot(labels, NUM_CLASSES).bool()
    # arg-max of logit - log(Exp(1) noise) is distributed as the softmax (Gumbel-max), and a GPU need not wait for the
    # host, as it does within torch.multinomial.
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).masked_fill(true_class, -torch.inf).argmax(dim=1)


def uniform_negative_labels(logits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Wrong labels ([B]), each of the nine with the same probability, whatever the `logits`."""
    offset = torch.randint(1, NUM_CLASSES, labels.shape, generator=generator, device=labels.device)
    return (labels + offset) % NUM_CLASSES


def blurring(side: int, blurs: int) -> Tensor:
    """`blurs` times [1/4, 1/2, 1/4] along an axis of `side` pixels, as one matrix ([side, side]).

    At an edge the outermost pixel stands in for the one beyond it. In fp32, as some GPUs know no float64: multiples of
    4^-`blurs`, so that with up to six blurs along each axis bits are blurred exactly.
    """
    once = torch.eye(side, dtype=torch.float64) / 2
    for pixel in range(side):
        for neighbour in (pixel - 1, pixel + 1):
            once[pixel, min(max(neighbour, 0), side - 1)] += 1 / 4
    return torch.linalg.matrix_power(once, blurs).float()


def random_masks(count: int, blur: Tensor, generator: torch.Generator) -> Tensor:
    """Masks of large regions of ones and zeros (bool [count, side * side], on the generator's device; section 3.2).

    Random bits, blurred along both axes by `blur` ([side, side], from `blurring`), then compared with 0.5.
    """
    side = len(blur)
    bits = torch.randint(0, 2, (count, side, side), generator=generator, device=generator.device).to(blur.dtype)
    return (blur @ bits @ blur.T > 0.5).flatten(1)


def hybrids(images: Tensor, masks: Tensor) -> Tensor:
    """Negatives ([B, D], B at least 2): each of `images` where its mask is 1, another one of them where it is 0.

    The shape of short strokes stays right, what lies further apart does not fit together (section 3.2).
    """
    return torch.where(masks, images, images.roll(1, dims=0))
