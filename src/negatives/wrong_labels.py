"""Wrong labels for negatives (section 3.3).

Every public function of this module can be chosen by its name, `training.negatives=NAME`, where labels make negatives.
It takes the read-out's logits ([B, 10]), the true labels ([B]) and a generator on their device, and returns labels
([B]) none of which is the true one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from src.negatives.codes import NUM_CLASSES


def hard(logits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Sampled from the read-out's prediction with the true class masked out.

    The wrong classes that the net finds likely are drawn often, which the paper says needs about a third of the epochs
    that uniform wrong labels need.
    """
    true_class = F.one_hot(labels, NUM_CLASSES).bool()
    # arg-max of logit - log(Exp(1) noise) is distributed as the softmax (Gumbel-max), and a GPU need not wait for the
    # host, as it does within torch.multinomial.
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).masked_fill(true_class, -torch.inf).argmax(dim=1)


def uniform(logits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Each of the nine with the same probability, whatever the `logits`."""
    offset = torch.randint(1, NUM_CLASSES, labels.shape, generator=generator, device=labels.device)
    return (labels + offset) % NUM_CLASSES
