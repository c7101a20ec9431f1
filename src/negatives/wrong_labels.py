"""Wrong labels for negatives (section 3.3).

Every public function of this module can be chosen by its name, `training.negatives=NAME`, where labels make negatives.
It takes the read-out's logits ([B, K]), the true labels ([B]) and noise from an exponential distribution of mean 1
([B, K]), of which all that is random in it is made, and returns labels ([B]) none of which is the true one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hard(logits: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
    """Sampled from the read-out's prediction with the true class masked out.

    The wrong classes that the net finds likely are drawn often, which the paper says needs about a third of the epochs
    that uniform wrong labels need.
    """
    true_class = F.one_hot(labels, logits.shape[1]).bool()
    # arg-max of logit - log(noise) is distributed as the softmax (Gumbel-max), and a GPU need not wait for the host, as
    # it does within torch.multinomial.
    return (logits - noise.log()).masked_fill(true_class, -torch.inf).argmax(dim=1)


def uniform(logits: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
    """Each of the others with the same probability, whatever the `logits`."""
    return hard(torch.zeros_like(logits), labels, noise)
