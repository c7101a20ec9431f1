"""Every tensor of a step on a GPU is on that GPU: checked where there is none, with tensors that hold no numbers."""

import pytest
import torch
from nets import MNIST_MAP, WAYS, configured
from torch._subclasses.fake_tensor import FakeTensorMode

from src.datasets.batches import Examples, jitter, to_unit
from src.experiment import new_net
from src.negatives import masks
from src.training import optimiser

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this build of torch is for CPUs")
BATCH, COUNT = 10, 40


class Generator(torch.Generator):
    """In place of a CUDA generator, which needs a driver: it only says where it is."""

    device = torch.device("cuda")


def fake_examples() -> Examples:
    images = torch.empty(COUNT, 784, dtype=torch.uint8, device="cuda")
    return Examples(images, torch.empty(COUNT, dtype=torch.int64, device="cuda"), MNIST_MAP, 10)


def what_it_updates_is_on_the_gpu(parameters, gradients, *_, lr, **__) -> None:
    assert {tensor.device.type for tensor in (lr, *parameters, *gradients)} == {"cuda"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
def test_steps_and_scores_stay_on_the_gpu(monkeypatch, way, precision):
    monkeypatch.setattr(optimiser, "sgd", what_it_updates_is_on_the_gpu)  # fake tensors know no fused update
    exponential, baddbmm = torch.Tensor.exponential_, torch.baddbmm  # .. nor these a generator or a dtype
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda x, *, generator: exponential(x))
    monkeypatch.setattr(torch, "baddbmm", lambda x, a, b, out=None, **_: baddbmm(x, a.float(), b.float()))
    monkeypatch.setattr(masks, "blurring", masks.blurring.__wrapped__)  # nothing fake stays in its cache
    config = configured(way, f"precision={precision}")
    with FakeTensorMode():
        with torch.device("cuda"):  # fake parameters cannot be moved
            net = new_net(config, MNIST_MAP, 10)
        examples = fake_examples()
        for phase in net.phases(config.training):
            for batch in torch.empty(COUNT, dtype=torch.int64, device="cuda").split(BATCH):
                images = to_unit(jitter(examples.images[batch], examples.shape, 1, Generator()))
                figures = phase.step(images, examples.labels[batch], Generator())
                assert {figure.device.type for figure in figures.values()} == {"cuda"}
        scores = net.scores(torch.empty(BATCH, 784, device="cuda"))
        assert {of_classes.device.type for of_classes in scores.values()} == {"cuda"}
