"""Learning without a backward pass, against autograd: every goodness and loss, every kind of layer, the read-out."""

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import LAYER, WAYS, full_matrix, new_net, optimizer_for, tensors, update, updated

from src.config.values import choices
from src.layers import goodness, losses
from src.layers import layer as layer_module
from src.layers.connections import Connections
from src.layers.fields import Map
from src.layers.layer import FFLayer
from src.layers.readout import Readout

PAIRS, ITERATIONS = 60, 3
FIELDS = {
    "dense": (Map(1, 1, 12), Map(1, 1, 8), {}),
    "local": (Map(4, 4, 3), Map(3, 3, 2), dict(field=2)),  # 3 x 3 locations over 4 x 4 grid points of 3 channels
    "in tiles": (Map(4, 4, 3), Map(4, 4, 2), dict(field=3, padding=1, tile=2)),
}
GOODNESSES, LOSSES = choices(goodness), choices(losses)
every_goodness = pytest.mark.parametrize("goodness", GOODNESSES)
every_loss = pytest.mark.parametrize("loss", LOSSES)
every_kind = pytest.mark.parametrize("kind", [*FIELDS, "recurrent over the image", "recurrent between layers"])


def new_case(kind: str, dtype: torch.dtype = torch.float32, **options) -> SimpleNamespace:
    """A layer with a graph of its total inputs z and activities h at every iteration, made by plain operations, and
    what its `learn` takes.
    """
    generator = torch.Generator().manual_seed(0)

    def normalised(count: int, width: int) -> torch.Tensor:
        v = torch.randn(count, width, generator=generator)
        return v / v.square().mean(dim=1, keepdim=True).sqrt()

    def connections(seen: Map, own: Map, std: float, **fields) -> Connections:
        return Connections(seen, own, std=std, generator=generator, dtype=dtype, **fields)

    recurrent = kind.startswith("recurrent")
    seen, own, fields = FIELDS["dense" if recurrent else kind]
    below = connections(seen, own, 0.4 * (12 / seen.size) ** 0.5 if not recurrent else 12**-0.5, **fields)
    above = connections(Map(1, 1, 5), own, 5**-0.5) if recurrent else None
    layer = FFLayer(below, above, **LAYER | dict(peer_normalisation=0.5, peer_momentum=0.7) | options)
    layer.bias.data.normal_(0, 0.3, generator=generator)
    layer.bias.data[3] = -100.0  # a unit that never fires: peer normalisation alone revives it
    layer.mean_activity.uniform_(0, 2, generator=generator)
    for parameter in layer.parameters():
        parameter.grad = 0.01 * torch.randn(parameter.shape, generator=generator)
    for part in filter(None, (below, above)):
        if part.mask is not None:
            part.weight.grad *= part.mask
    matrix = differentiable_matrix(below)
    if not recurrent:
        n = normalised(2 * PAIRS, seen.size)
        z = n @ matrix.T + layer.bias
        activity = [layer(n).detach()]
        return SimpleNamespace(layer=layer, z=[z], h=[z.relu()], activity=activity, how={"below": [n]})
    case = SimpleNamespace(layer=layer, z=[], h=[])
    image, belows, aboves = normalised(PAIRS, 12), [], []
    for _ in range(ITERATIONS):
        belows.append(image if "image" in kind else normalised(2 * PAIRS, 12))
        aboves.append(normalised(2 * PAIRS, 5))
        before = torch.rand(2 * PAIRS, 8, generator=generator)
        from_below = (belows[-1] @ matrix.T).repeat(2 * PAIRS // len(belows[-1]), 1)
        z = from_below + aboves[-1] @ above.weight.T + layer.bias
        case.z.append(z)
        case.h.append(0.3 * before + 0.7 * z.relu())
    case.activity = [h.detach() for h in case.h]
    below, gates = image if "image" in kind else belows, [z.detach() > 0 for z in case.z]
    case.how = {"below": below, "above": aboves, "gates": gates, "dh_dz": 0.7}
    return case


def differentiable_matrix(connections: Connections) -> torch.Tensor:
    """`full_matrix` as a function of the weights, for autograd."""
    numbers = torch.arange(1.0, connections.weight.numel() + 1).view_as(connections.weight)
    where = full_matrix(connections, numbers).long()
    inside = (full_matrix(connections) != 0) & (where > 0)
    return torch.where(inside, connections.weight.flatten()[where.clamp(min=1) - 1], 0)


def autograds(case: SimpleNamespace, goodness: str, loss: str, threshold: float, temperature: float) -> SimpleNamespace:
    """The whole local loss of a layer, differentiated; to be called before it learns."""
    G = torch.stack([GOODNESSES[goodness](h) for h in case.h])  # [T, 2B]
    theta = threshold * GOODNESSES[goodness](torch.ones_like(case.h[0][:1])).item()
    of_pairs = LOSSES[loss](G[:, :PAIRS], G[:, PAIRS:], theta=theta, temperature=temperature)
    positive_z, positive_h = (torch.stack(x)[:, :PAIRS].mean(dim=(0, 1)) for x in (case.z, case.h))
    m = (0.7 * case.layer.mean_activity + 0.3 * positive_h).detach()
    peer_normalisation = case.layer.peer_normalisation * ((m.mean() - m) * positive_z).sum()
    parameters = list(case.layer.parameters())
    gradients = torch.autograd.grad(of_pairs.mean() - peer_normalisation, parameters)
    results = of_pairs.mean(dim=0).detach(), G.mean(dim=0).detach()  # over the iterations
    return SimpleNamespace(results=results, mean_activity=m, gradients=gradients)


def learn(case: SimpleNamespace, share: float) -> tuple[tuple, list[torch.Tensor]]:
    """What `learn` returns, and what it adds to the gradients, of which so much less is left."""
    parameters = list(case.layer.parameters())
    before = [parameter.grad.clone() for parameter in parameters]
    with torch.no_grad():
        results = case.layer.learn(case.activity, 1 - share, **case.how)
    return results, [p.grad - (1 - share) * g for p, g in zip(parameters, before, strict=True)]


@every_kind
@every_goodness
@every_loss
# At the low temperature the derivative of most cases vanishes.
@pytest.mark.parametrize(("temperature", "threshold"), [(1.0, 1.0), (2.5, 0.5), (0.05, 0.8)])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_layer_adds_its_share_of_the_gradient(monkeypatch, kind, goodness, loss, temperature, threshold, on_gpu):
    if on_gpu:  # there, all cases enter the products
        monkeypatch.setattr(layer_module, "rows_that_matter", lambda derivatives: None)
    case = new_case(kind, goodness=goodness, loss=loss, temperature=temperature, threshold=threshold)
    expected = autograds(case, goodness, loss, threshold, temperature)
    results, added = learn(case, 0.3)
    rtol = 3e-5 if loss == "fitted_threshold" else 1e-5  # a threshold that itself is only fitted to rounding
    for ours, theirs in zip(results, expected.results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=3e-6)
    torch.testing.assert_close(case.layer.mean_activity, expected.mean_activity)
    for ours, theirs in zip(added, expected.gradients, strict=True):
        assert theirs.abs().max() > 1e-3
        assert (ours - 0.3 * theirs).abs().max() <= 1e-5 * theirs.abs().max()


@every_kind
@every_goodness
@every_loss
def test_so_does_one_with_bf16_products_roughly(kind, goodness, loss):
    case = new_case(kind, goodness=goodness, loss=loss, dtype=torch.bfloat16)
    expected = autograds(case, goodness, loss, 1.0, 1.0)
    results, added = learn(case, 1.0)
    for ours, theirs in zip([*results, *added], [*expected.results, *expected.gradients], strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.05 * theirs.norm()
    rounded = [(ours - theirs).norm() / theirs.norm() for ours, theirs in zip(added, expected.gradients, strict=True)]
    assert max(rounded) > 1e-5


def test_the_threshold_may_be_the_one_that_suits_the_mini_batch_best():
    G = 10 * torch.randn(2, 50, generator=torch.Generator().manual_seed(0)) ** 3
    loss = losses.fitted_threshold(*G, theta=1e9, temperature=7.0)
    every = {theta: losses.logistic(*G, theta=theta, temperature=7.0) for theta in np.arange(-50, 50, 0.01)}
    best = min(every, key=lambda theta: every[theta].mean())
    np.testing.assert_allclose(loss, every[best], rtol=0, atol=1e-3)
    p = 1 / (1 + np.exp((best - G.numpy()) / 7))
    assert p.mean() == pytest.approx(0.5, abs=1e-3)
    slopes = new_case("dense", loss="fitted_threshold", temperature=7.0).layer.loss_slope(*G)
    np.testing.assert_allclose(torch.stack(slopes), [-(1 - p[0]) / 14, p[1] / 14], rtol=0, atol=1e-4)


def test_the_kinds_of_goodness():
    h = torch.tensor([[3.0, 0, 4]])
    assert {name: function(h).item() for name, function in GOODNESSES.items()} == {
        "sum_of_squares": 25, "minus_sum_of_squares": -25, "sum_of_activities": 7
    }  # fmt: skip


@pytest.mark.parametrize("way", [way for way in WAYS if way != "backprop"])
def test_what_learns_changes_its_own_gradients_and_nothing_else(way):
    """Neither another layer's nor a read-out's; and the read-outs not the layers'."""
    net, learned = new_net(way), []
    learning = [part for part in net.modules() if hasattr(part, "learn")]

    def watched(part: torch.nn.Module, learn: Callable, *arguments, **options):
        own, before = {*part.parameters()}, copy.deepcopy([(p.data, p.grad) for p in net.parameters()])
        results = learn(*arguments, **options)
        for parameter, (value, gradient) in zip(net.parameters(), before, strict=True):
            assert torch.equal(parameter, value)
            assert torch.equal(parameter.grad, gradient) == (parameter not in own)
        learned.append(part)
        return results

    optimizer = optimizer_for(net)
    for part in learning:
        part.learn = partial(watched, part, part.learn)
    update(way, net, optimizer, 0)
    assert len(learned) == len(set(learned)) == len(learning)


@pytest.mark.parametrize("way", WAYS)
def test_no_step_needs_a_graph(monkeypatch, way):
    def refuse(*arguments, **options):
        raise AssertionError("autograd was asked for a gradient")

    for module, name in ((torch.Tensor, "backward"), (torch.autograd, "backward"), (torch.autograd, "grad")):
        monkeypatch.setattr(module, name, refuse)
    net = new_net(way)
    figures = update(way, net, optimizer_for(net), 0)
    assert not any(value.requires_grad for value in figures.values())


@pytest.mark.parametrize("way", WAYS)
def test_logits_are_not_rounded_to_bf16(way):
    net, read = updated(way, "precision=bf16"), []
    for part in net.modules():
        if isinstance(part, Readout):
            part.register_forward_hook(lambda part, inputs, logits: read.append((part.weight, *inputs, logits)))
    net.scores(tensors(100, dim=784)[0])
    assert read
    for weight, features, logits in read:
        torch.testing.assert_close(logits, F.linear(features, weight), rtol=1e-6, atol=1e-7)
        for of_fp32 in (features, logits):
            assert of_fp32.dtype == torch.float32 and not torch.equal(of_fp32, of_fp32.bfloat16().float())
