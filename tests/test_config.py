"""The configuration: what is accepted, what is refused, and in which words."""

import math
import os
import re

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.config import errors, loading
from src.config.errors import USER_ERRORS, explain
from src.config.loading import CONFIGS, METHODS, check_sizes, load, load_saved
from src.config.sweep import BeforeRuns, load_job
from src.config.values import Config, ConfigError
from src.methods import named

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def composed(*overrides: str) -> Config:
    return load(loading.composed(*overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(USER_ERRORS) as caught:
        composed(*overrides)
    line = explain(caught.value)
    assert "\n" not in line
    return line


def test_the_default_is_the_matlab_recipe():
    config = composed()
    assert (config.method, config.dataset) == ("supervised", "mnist")
    assert config.model.hidden_dims == [1000, 1000, 1000]
    assert (config.model.goodness, config.model.loss, config.model.threshold) == ("sum_of_squares", "logistic", 1.0)
    assert (config.training.epochs, config.training.batch_size) == (100, 100)
    assert (config.training.learning_rate, config.training.weight_decay) == (0.01, 0.001)
    assert (config.training.readout_learning_rate, config.training.readout_weight_decay) == (0.1, 0.003)
    assert config.training.negatives == "hard"
    assert (config.data.root, config.data.validation_images, config.data.jitter) == ("datasets", 10000, 0)
    assert composed("experiment=matlab") == config


@pytest.mark.parametrize(
    ("experiment", "method", "hidden_dims", "epochs", "learning_rate", "jitter", "negatives", "images"),
    [
        ("paper", "supervised", [2000] * 4, 60, 0.005, 0, "hard", 60_000),
        ("paper_fast", "supervised", [2000] * 4, 40, 0.01, 0, "hard", 60_000),
        ("paper_jitter", "supervised", [2000] * 4, 500, 0.005, 2, "hard", 60_000),
        ("matlab", "supervised", [1000] * 3, 100, 0.01, 0, "hard", 50_000),
        ("loewex", "supervised", [1000] * 3, 100, 0.01, 0, "uniform", 50_000),
        ("unsupervised", "unsupervised", [2000] * 4, 100, 0.005, 0, "hybrids", 60_000),
        ("local_receptive_fields", "unsupervised", [16 * 128, 9 * 220, 4 * 512], 60, 0.01, 0, "hybrids", 60_000),
        ("recurrent", "recurrent", [2000] * 2, 60, 0.01, 0, "hard", 60_000),
        ("backprop", "backprop", [1000] * 3, 20, 1.0, 0, None, 60_000),
    ],
)
def test_experiments_are_what_was_published(
    experiment, method, hidden_dims, epochs, learning_rate, jitter, negatives, images
):
    config = composed(f"experiment={experiment}")
    assert (config.name, config.method, config.dataset) == (experiment, method, "mnist")
    assert config.model.hidden_dims == hidden_dims
    assert (config.training.epochs, config.training.learning_rate) == (epochs, learning_rate)
    assert (60_000 - config.data.validation_images, config.data.jitter) == (images, jitter)
    assert getattr(config.training, "negatives", None) == negatives
    assert experiment in [row.experiment for row in named(method).PUBLISHED]


def test_what_only_one_experiment_has_is_as_published():
    config = composed("experiment=local_receptive_fields")
    assert (config.model.grids, config.model.field) == ([4, 3, 2], 10)
    config = composed("experiment=loewex")
    assert config.model.peer_normalisation == pytest.approx(0.03 * 2 * (1 - config.model.peer_momentum) / 1000)
    assert (config.model.weight_scale, config.training.decay_in_momentum) == ("fan_out", True)
    assert (config.training.weight_decay, config.training.readout_weight_decay) == (0.0003, 0.003)
    assert config.training.readout_learning_rate == 0.1
    config = composed("experiment=recurrent")
    assert (config.model.damping, config.model.iterations) == (0.3, 8)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_file_says_how_to_run_it(experiment):
    assert composed(f"experiment={experiment}").name == experiment
    assert f"# python -m main experiment={experiment}" in (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()


def test_every_method_and_every_data_set_can_be_chosen_by_its_name():
    assert METHODS == ["backprop", "recurrent", "supervised", "unsupervised"]
    for method in METHODS:
        config = composed(f"method={method}", "dataset=fashion_mnist")
        assert (config.method, config.dataset) == (method, "fashion_mnist")
        assert isinstance(config, Config) and type(config.model) is named(method).Model
    assert {composed(f"dataset={path.stem}").dataset for path in (CONFIGS / "dataset").iterdir()} == set(
        loading.DATASETS
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("foo=1", "there is no key foo"),
        ("+foo=1", "there is no key foo"),
        ("training.epochz=1", "there is no key training.epochz"),
        ("+training.epochz=1", "there is no key training.epochz"),
        ("~seed", "seed: has no value"),
        ("training.epochs=many", "training.epochs: Value 'many' of type 'str' could not be converted to Integer"),
        ("seed=1.5", "seed: Value '1.5'"),
        ("model.hidden_dims=1000", "model.hidden_dims: Invalid value"),
        ("model.hidden_dims=[1000]", "model.hidden_dims=[1000]: must name at least 2 hidden layers, because goodness"),
        ("model.hidden_dims=[1000,0]", "model.hidden_dims=[1000, 0]: every width must be at least 1"),
        ("model.goodness=badness", "model.goodness=badness: must be one of sum_of_activities, sum_of_squares"),
        ("model.loss=none", "model.loss=none: must be one of logistic"),
        ("model.temperature=0", "model.temperature=0.0: must be above 0"),
        ("model.threshold=inf", "model.threshold=inf: must be a finite number"),
        ("model.weight_scale=fan", "model.weight_scale=fan: must be one of fan_in, fan_out"),
        ("training.batch_size=0", "training.batch_size=0: must be at least 1"),
        (
            "training.batch_size=50001",
            "training.batch_size=50001: must be at most the number of training images, 50000",
        ),
        ("data.validation_images=60000", "data.validation_images=60000: must be below the number of training images"),
        ("training.epochs=0", "training.epochs=0: must be at least 1"),
        ("training.learning_rate=-0.1", "training.learning_rate=-0.1: must be at least 0"),
        ("training.learning_rate=nan", "training.learning_rate=nan: must be a finite number"),
        ("training.momentum=1", "training.momentum=1.0: must be at least 0 and below 1"),
        ("training.negatives=easy", "training.negatives=easy: must be one of hard, uniform"),
        ("precision=fp8", "precision=fp8: must be one of auto, fp32, bf16"),
        ("device=tpu", "device=tpu: must be auto, cpu, cuda, cuda:1 or mps"),
        ("device=cuda:one", "device=cuda:one: must be auto"),
        ("device=cuda:01", "device=cuda:01: must be auto"),
        ("data.validation_images=-1", "data.validation_images=-1: must be at least 0"),
        ("data.jitter=-1", "data.jitter=-1: must be at least 0"),
        ("data.jitter=28", "data.jitter=28: must be below the images' smaller side, 28"),
        ("evaluation.every=-1", "evaluation.every=-1: must be at least 0"),
        ("seed=-1", "seed=-1: must be at least 0"),
        ("experiment=papier", "there is no experiment/papier.yaml; there are "),
        ("method=adam", "there is no method/adam.yaml; there are backprop, recurrent, supervised, unsupervised"),
        ("dataset=cifar", "there is no dataset/cifar.yaml; there are cifar10, emnist_balanced, emnist_letters, "),
        ("training.epochs", "missing EQUAL"),
        ("evaluate=runs/x", "there is no key evaluate"),
        ("training.step=plain", "there is no key training.step"),
        ("method=backprop model.threshold=2", "there is no key model.threshold with this method"),
        ("method=backprop model.hidden_dims=[]", "model.hidden_dims=[]: must name at least 1 hidden layer, because"),
        ("method=recurrent model.weight_scale=fan_out", "there is no key model.weight_scale with this method"),
        ("method=recurrent model.grids=[3,2]", "there is no key model.grids with this method"),
        ("method=recurrent model.weight_gain=-0.7", "model.weight_gain=-0.7: must be at least 0"),
        ("method=recurrent model.damping=1", "model.damping=1.0: must be at least 0 and below 1"),
        ("method=recurrent model.iterations=4", "model.iterations=4: must be at least 5"),
        ("method=recurrent model.first_learning_iteration=0", "first_learning_iteration=0: must be at least 1"),
        ("method=recurrent model.first_learning_iteration=9", "=9: must be at most model.iterations, 8"),
        ("method=unsupervised training.negatives=uniform", "training.negatives=uniform: must be one of hybrids"),
        ("method=unsupervised training.blurs=-1", "training.blurs=-1: must be at least 0"),
        ("method=unsupervised training.readout_epochs=-1", "training.readout_epochs=-1: must be at least 0"),
        ("method=unsupervised model.grids=many", "model.grids: Invalid value"),
        ("method=unsupervised training.batch_size=1", "training.batch_size=1: leaves a batch of one of 50000 training"),
        (
            "method=unsupervised training.batch_size=49999",
            "leaves a batch of one of 50000 training images, and method=",
        ),
        ("training.blurs=6", "there is no key training.blurs with this method"),
        ("model.damping=0.3", "there is no key model.damping with this method"),
        ("unsupervised.blurs=6", "there is no key unsupervised"),
        ("name=../x", "name=../x: names a folder: it must not be empty, begin with a dot or hold a slash"),
        ("name=a/b", "name=a/b: names a folder"),
        ("name=", "name=: names a folder"),
        ("name=1e3", "name=1000.0: must not be a number or a truth value"),
        ("name=true", "name=True: must not be a number or a truth value"),
        (r'name="a\${b}"', "name=a${b}: must not hold ${"),
        ("data.root=~/mnist", """as it stands; type it in both kinds of quotes: 'data.root="~/mnist"'"""),
        ("resume=/größe", """type it in both kinds of quotes: 'resume="/größe"'"""),
        ("model.hidden_dims=[500", "no viable alternative"),
    ],
)
def test_refusals_name_the_key_and_the_rule(overrides, expected):
    assert expected in refusal(*overrides.split(" "))


LOCAL = ("method=unsupervised", "model.hidden_dims=[32,18,8]", "model.grids=[4,3,2]")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("model.grids=[4,3]", "model.grids=[4, 3]: must name as many layers as model.hidden_dims"),
        ("model.grids=[]", "model.grids=[]: must name as many layers"),
        ("model.grids=[4,2,1]", "model.grids=[4, 2, 1]: each grid must have one location less per side than the one"),
        ("model.grids=[2,3,4]", "each grid must have one location less"),
        ("model.grids=[2,1,0]", "each grid must have one location less"),
        (
            "model.hidden_dims=[32,18,9]",
            "9 units cannot be shared out evenly to 2 x 2 locations (model.grids=[4, 3, 2])",
        ),
        ("model.field=0", "model.field=0: must be at least 1 and below 29"),
        ("model.field=29", "model.field=29: must be at least 1 and below 29"),
        ("model.field=28", "model.field=28: squares of so many pixels cannot be spread evenly over 28 pixels at 4 loc"),
        ("model.hidden_dims=[4] model.grids=[1]", "model.hidden_dims=[4]: must name at least 2 hidden layers"),
        ("model.hidden_dims=[] model.grids=[]", "model.hidden_dims=[]: must name at least 2 hidden layers"),
        ("model.field=11", "model.field=11: squares of so many pixels cannot be spread evenly"),
    ],
)
def test_refusals_of_local_receptive_fields(overrides, expected):
    assert expected in refusal(*LOCAL, *overrides.split(" "))


@pytest.mark.parametrize(
    "overrides",
    [
        (*LOCAL,),
        (*LOCAL, "model.field=7"),
        (*LOCAL, "model.field=1"),
        (*LOCAL, "model.grids=[3,2]", "model.hidden_dims=[9,4]", "model.field=8"),
        (*LOCAL, "model.grids=[2,1]", "model.hidden_dims=[4,1]", "model.field=27"),
        (*LOCAL, "training.blurs=0", "training.readout_epochs=0", "training.batch_size=2"),
        ("method=recurrent", "model.iterations=5", "model.first_learning_iteration=5"),
        ("method=recurrent", "model.hidden_dims=[1]"),
        ("method=backprop", "model.hidden_dims=[1]"),
        ("training.batch_size=50000",),
        ("data.validation_images=59999", "training.batch_size=1"),
        ("dataset=idx", "data.validation_images=60000", "training.batch_size=60001"),  # its size is known later
    ],
)
def test_what_just_about_fits_is_accepted(overrides):
    composed(*overrides)


def test_the_sizes_of_own_files_are_checked_when_they_are_known():
    config = composed("dataset=idx", "data.validation_images=50", "training.batch_size=20")
    check_sizes(config, 70)
    for images, wrong in ((69, "training.batch_size=20: must be at most"), (50, "data.validation_images=50: must be")):
        with pytest.raises(ConfigError, match=re.escape(wrong)):
            check_sizes(config, images)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("training: {epochz: 3}", "in experiment/mine.yaml, there is no key training.epochz"),
        ("training: {epochs: many}", "in experiment/mine.yaml, training.epochs: Value 'many'"),
        ("training: {epochs: -3}", "training.epochs=-3: must be at least 1"),
        ("training: {blurs: 3}", "in experiment/mine.yaml, there is no key training.blurs with this method"),
        ("defaults: [{override /method: backprop}]\nmodel: {threshold: 3}", "there is no key model.threshold with"),
        ("training: [", "mine.yaml"),
    ],
)
def test_an_experiment_file_is_checked_like_the_command_line(tmp_path, content, expected):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    assert expected in refusal(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")


def test_a_saved_run_is_read_with_its_own_method_and_newer_keys_have_their_defaults(tmp_path):
    values = OmegaConf.to_container(loading.composed(*LOCAL, "dataset=kmnist", "training.epochs=7"))
    del values["training"]["blurs"], values["logging"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(values))
    assert load_saved(tmp_path) == composed(*LOCAL, "dataset=kmnist", "training.epochs=7")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("training.step", "fast", "this version does not take its training.step (Key 'step' not in"),
        ("unsupervised.blurs", 6, "this version does not take its unsupervised"),
        ("seed", None, "is not whole: it has no seed"),
        ("training.epochs", "many", "this version does not take its training.epochs (Value 'many'"),
        ("training", 3, "this version does not take its content (Merge error"),
        ("method", "hebb", "there is no method hebb here"),
        ("dataset", "cifar", "there is no dataset cifar here"),
        ("model.threshold", -1, "model.threshold=-1.0: must be at least 0"),
    ],
)
def test_a_configuration_of_another_version_is_refused_in_one_line(tmp_path, key, value, expected):
    values = OmegaConf.create(OmegaConf.to_container(loading.composed()))
    if value is None:
        del values[key]
    else:
        OmegaConf.update(values, key, value, force_add=True)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(values))
    with pytest.raises(ConfigError) as caught:
        load_saved(tmp_path)
    line = explain(caught.value)
    assert line == str(caught.value) and expected in line and "\n" not in line


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_missing_device_is_refused(monkeypatch, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert f"device={device}: this torch finds no CUDA device" in refusal(f"device={device}")


def test_an_error_is_one_line_or_keeps_its_traceback_for_who_asks(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit, match=r"^error: the one; the other$"), errors.one_line_errors():
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
        raise ConfigError("the one\n  the other")
    assert "HYDRA_FULL_ERROR" not in os.environ
    monkeypatch.setattr(errors, "SHOW_TRACEBACK", True)
    with pytest.raises(ConfigError), errors.one_line_errors():
        raise ConfigError("the one\n  the other")


@pytest.mark.parametrize("overrides", [["resume="], ["resume=", "training.epochs=3"]])
def test_an_empty_name_is_no_folder_to_resume(overrides):
    with pytest.raises(ConfigError, match=r"^resume=: names no run's folder$"):
        load_job(loading.composed(*overrides), overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["name=../x"], "error: name=../x: names a folder"),
        (["training.epochs=0"], "error: training.epochs=0: must be at least 1"),
        (["resume=typo"], "error: typo: there is no run"),
        (["hydra.run.dir='~/runs'"], "error: hydra.run.dir=~/runs: Hydra does not know what ~ is"),
        (["hydra.run.dir="], "error: hydra.run.dir=: is empty"),
    ],
)
def test_what_is_no_good_makes_no_folder(monkeypatch, tmp_path, overrides, expected):
    monkeypatch.chdir(tmp_path)
    loading.register_schemas()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("config", overrides=overrides, return_hydra_config=True)
    with pytest.raises(SystemExit, match=f"^{re.escape(expected)}"):
        BeforeRuns().on_run_start(config)
    assert not list(tmp_path.iterdir())


DEFAULTS = loading.composed()


@settings(max_examples=60, deadline=None)
@given(value=st.one_of(st.floats(), st.integers(-(2**70), 2**70), st.text(max_size=5), st.none()))
def test_any_learning_rate_is_accepted_or_refused_in_words(value):
    values = DEFAULTS.copy()
    try:
        values.training.learning_rate = value
        config = load(values)
    except USER_ERRORS as error:
        assert "learning_rate" in explain(error)
    else:
        assert math.isfinite(config.training.learning_rate)
        assert config.training.learning_rate >= 0
