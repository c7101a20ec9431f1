"""The unsupervised net (section 3.2): its updates against NumPy, and read-outs that leave the layers alone."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import reference
import reference_others
import torch
from nets import BATCH, HIDDEN_DIMS, TINY, as_state, assert_close, assert_layers_are, batch, optimizer_for, small_net
from test_config import composed

from src import fast, unsupervised
from src.classify import class_scores
from src.config import ConfigError
from src.data import Examples
from src.experiment import build_model, build_phases
from src.train import gain, make_optimizer, set_gain, train_epochs
from src.unsupervised import UnsupervisedFFNet, cross_entropies, readout_step

net = partial(small_net, kind=UnsupervisedFFNet)
RULES = {"one_pass": [2, 3], "one_pass_all_layers": [1, 2, 3], **{f"one_pass_layer_{k}": [k] for k in (1, 2, 3)}}
both_steps = pytest.mark.parametrize(
    "train_step", [unsupervised.train_step, fast.unsupervised_step], ids=["plain", "fast"]
)
RATES = dict(learning_rate=0.05, weight_decay=0.02, readout_learning_rate=0.1, readout_weight_decay=0.03)


def tensors(seed: int, size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, labels, and as many other images for negatives."""
    (images, labels, _), (negatives, _, _) = batch(seed, size), batch(seed + 1000, size)
    return torch.tensor(images).float(), torch.tensor(labels), torch.tensor(negatives).float()


def readout_weights(model: UnsupervisedFFNet) -> dict[str, torch.nn.Parameter]:
    """By rule."""
    alone = {f"one_pass_layer_{k}": weight for k, weight in enumerate(model.readout_layer_weights, start=1)}
    return {"one_pass": model.readout_weight, "one_pass_all_layers": model.readout_all_layers_weight, **alone}


def readout_optimizer_for(model: UnsupervisedFFNet, **options) -> torch.optim.SGD:
    readouts = [(name, parameter) for name, parameter in model.named_parameters() if name.startswith("readout")]
    return make_optimizer(readouts, **(RATES | dict(momentum=0.9, decay_in_momentum=False) | options))


def layers_of(model: UnsupervisedFFNet) -> dict[str, torch.Tensor]:
    """A copy of weights, biases and running means."""
    return {name: value.clone() for name, value in model.layers.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@both_steps
@pytest.mark.parametrize("decay_in_momentum", [False, True])
@pytest.mark.parametrize(
    ("temperature", "peer_normalisation", "peer_momentum", "momentum"), [(1.0, 0.03, 0.9, 0.9), (2.5, 0.2, 0.7, 0.5)]
)
def test_both_updates_are_those_of_numpy(
    train_step, decay_in_momentum, temperature, peer_normalisation, peer_momentum, momentum
):
    """Four of layers and read-outs together, then three of the read-outs alone."""
    model = net(temperature=temperature, peer_normalisation=peer_normalisation, peer_momentum=peer_momentum)
    state = as_state(model)
    readouts = {rule: reference_others.new_readout(layers, HIDDEN_DIMS) for rule, layers in RULES.items()}
    smoothing = dict(momentum=momentum, decay_in_momentum=decay_in_momentum)
    optimizer = optimizer_for(model, **RATES, **smoothing)
    readout_optimizer = readout_optimizer_for(model, **smoothing)

    def compare(figures: dict[str, torch.Tensor], losses: dict[str, float | list]) -> None:
        for name, expected in losses.items():
            assert_close(figures[name], expected)
        assert_layers_are(model, state)
        for rule, weight in readout_weights(model).items():
            assert_close(weight, readouts[rule].weight)
            assert_close(-weight.grad, readouts[rule].smooth)

    for step in range(4):
        images, labels, negatives = tensors(step, size=BATCH - step)  # the last batch of an epoch is smaller
        set_gain(optimizer, gain(epoch=step + 1, epochs=4))
        ours = train_step(model, optimizer, images, labels, lambda _, negatives=negatives: negatives)
        state, readouts, figures = reference_others.unsupervised_step(
            state,
            readouts,
            images.numpy(),
            negatives.numpy(),
            labels.numpy(),
            eps=0.05,
            eps_sup=0.1,
            wc=0.02,
            wc_sup=0.03,
            gain=reference.gain(step + 1, 4),
            peer=peer_normalisation,
            peer_momentum=peer_momentum,
            temperature=temperature,
            tiny=TINY,
            **smoothing,
        )
        compare(ours, figures)

    layers = layers_of(model)
    for step in range(3):
        images, labels, _ = tensors(10 + step)
        set_gain(readout_optimizer, gain(epoch=step + 1, epochs=3))
        ours = readout_step(model, readout_optimizer, images, labels)
        activities = [h for _, _, h in reference.forward(images.numpy(), state.weights, state.biases, TINY)]
        rate = 0.1 * reference.gain(step + 1, 3)
        readouts, losses = reference_others.readouts_step(
            readouts, activities, labels.numpy(), rate=rate, decay=0.03, tiny=TINY, **smoothing
        )
        assert ours["loss"].shape == ours["pairs_ordered_wrongly"].shape == (0,)
        compare({"readout_loss": ours["readout_loss"]}, {"readout_loss": losses["one_pass"]})
    assert same(layers_of(model), layers)

    images, _, _ = tensors(20, size=30)
    activities = [h for _, _, h in reference.forward(images.numpy(), state.weights, state.biases, TINY)]
    scores = class_scores(model, images)
    assert list(scores) == list(RULES)
    for rule, readout in readouts.items():
        assert_close(scores[rule], reference_others.read(readout, activities, TINY)[1])


def test_the_read_outs_send_no_gradient_into_the_layers():
    model = net()
    images, labels, negatives = tensors(0)
    losses, _, activities = model.local_losses(images, negatives)
    with torch.no_grad():
        for weight in readout_weights(model).values():
            weight.normal_(generator=torch.Generator().manual_seed(0))  # zeros would send nothing anyway
    sum(cross_entropies(model, [h[: len(images)] for h in activities], labels).values()).backward()
    assert all(weight.grad.abs().max() > 0 for weight in readout_weights(model).values())
    assert all(parameter.grad is None for parameter in model.layers.parameters())
    sum(losses).backward()
    assert all(parameter.grad is not None for parameter in model.layers.parameters())


@both_steps
def test_labels_do_not_matter_to_the_layers(train_step):
    models = [net(), net()]
    for shift, model in enumerate(models):
        optimizer = optimizer_for(model)
        for step in range(5):
            images, labels, negatives = tensors(step)
            train_step(model, optimizer, images, (labels + shift) % 10, lambda _, negatives=negatives: negatives)
    assert same(*(layers_of(model) for model in models))
    for ours, theirs in zip(*(readout_weights(model).values() for model in models), strict=True):
        assert not torch.equal(ours, theirs)


def test_start_values():
    model = net()
    supervised = small_net()
    assert same(layers_of(model), layers_of(supervised))
    assert not any(weight.any() for weight in readout_weights(model).values())
    widths = [weight.shape[1] for weight in readout_weights(model).values()]
    assert widths == [9 + 13, 17 + 9 + 13, 17, 9, 13]


@both_steps
def test_bf16_products_stay_near_fp32_and_keep_fp32_weights(train_step):
    models = [net(matmul_dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    for model in models:
        optimizer, readout_optimizer = optimizer_for(model), readout_optimizer_for(model)
        for step in range(20):
            images, labels, negatives = tensors(step, size=20)
            train_step(model, optimizer, images, labels, lambda _, negatives=negatives: negatives)
        for step in range(20):
            readout_step(model, readout_optimizer, *tensors(step, size=20)[:2])
    exact, rounded = (dict(model.named_parameters()) for model in models)
    for name, ours in rounded.items():
        assert ours.dtype == ours.grad.dtype == torch.float32
        assert 0 < (ours - exact[name]).norm() / exact[name].norm() < 0.03, name


COUNT = 25
SETTINGS = [
    "method=unsupervised", "model.hidden_dims=[20,12]", "training.batch_size=10", "training.epochs=3",
    "unsupervised.readout_epochs=2",
]  # fmt: skip


@pytest.fixture
def examples() -> Examples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 784), dtype=torch.uint8, generator=generator)
    return Examples(images, torch.randint(0, 10, (COUNT,), generator=generator))


def test_the_layers_learn_first_and_the_read_outs_alone_after_them(examples):
    config = composed(*SETTINGS)
    model = build_model(config, torch.float32)
    generator = torch.Generator().manual_seed(0)
    phases = build_phases(config, model, examples, generator)
    assert [phase.epochs for phase in phases] == [3, 2]
    layers, readouts, figures = [layers_of(model)], [copy.deepcopy(readout_weights(model))], []
    for of_epoch in train_epochs(phases, examples, batch_size=10, max_shift=0, generator=generator):
        layers.append(layers_of(model))
        readouts.append(copy.deepcopy(readout_weights(model)))
        figures.append(of_epoch)
    assert len(layers) == 1 + 5
    for epoch in (1, 2, 3):
        assert not any(torch.equal(layers[epoch][name], layers[epoch - 1][name]) for name in layers[epoch])
    assert same(layers[4], layers[3]) and same(layers[5], layers[3])
    for before, after in pairwise(readouts):
        assert not any(torch.equal(before[rule], after[rule]) for rule in before)
    assert [len(of_epoch["loss"]) for of_epoch in figures] == [2, 2, 2, 0, 0]
    # The rates of the read-outs start again at their full height.
    assert [phase.optimizer.param_groups[-1]["lr"].item() for phase in phases] == pytest.approx([0.1 / 3, 0.1 / 2])


def test_negatives_are_hybrids_of_the_batch(examples):
    """Every pixel from the image at its place or from one other image of the batch, in large regions of either."""
    config = composed(*SETTINGS)
    model = build_model(config, torch.float32)
    first, _ = build_phases(config, model, examples, torch.Generator().manual_seed(0))
    images = examples.images[:10] / 255
    negatives = first.step.keywords["make_negatives"](images)
    for image, other, negative in zip(images, images.roll(1, dims=0), negatives, strict=True):
        assert torch.equal(torch.where(negative == image, image, other), negative)
        own = (negative == image).view(28, 28)
        assert 0.2 < own.float().mean() < 0.8
        assert (own[:, 1:] == own[:, :-1]).float().mean() > 0.75
    assert not torch.equal(first.step.keywords["make_negatives"](images), negatives)  # drawn anew


@pytest.mark.parametrize(("batch_size", "count"), [(1, 50_000), (999, 1000), (100, 1)])
def test_a_batch_of_one_image_is_refused(batch_size, count):
    with pytest.raises(ConfigError) as caught:
        composed(*SETTINGS, f"training.batch_size={batch_size}", f"data.validation_images={60_000 - count}")
    expected = f"leaves a batch of one of {count} training images, and a hybrid needs two"
    assert str(caught.value) == f"training.batch_size={batch_size}: {expected}"
