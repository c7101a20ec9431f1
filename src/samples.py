"""Inputs of the three passes of section 3.3: the label code is written over the first ten pixels.

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


def uniform_negative_labels(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Wrong labels ([B]), each of the nine with the same probability."""
    offset = torch.randint(1, NUM_CLASSES, labels.shape, generator=generator, device=labels.device)
    return (labels + offset) % NUM_CLASSES
