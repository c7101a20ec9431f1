"""The configuration: what is accepted, what is refused, and in which words."""

import copy
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import src.config
from src.config import CONFIGS, USER_ERRORS, Config, explain, load, load_saved

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def composed(*overrides: str) -> Config:
    return load(src.config.composed(*overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(USER_ERRORS) as caught:
        composed(*overrides)
    line = explain(caught.value)
    assert "\n" not in line
    return line


def test_the_default_is_the_matlab_recipe():
    config = composed()
    assert config.model.hidden_dims == [1000, 1000, 1000]
    assert (config.training.epochs, config.training.batch_size) == (100, 100)
    assert (config.training.learning_rate, config.training.weight_decay) == (0.01, 0.001)
    assert (config.training.readout_learning_rate, config.training.readout_weight_decay) == (0.1, 0.003)
    assert config.training.negatives == "hard"
    assert (config.data.root, config.data.validation_images, config.data.jitter) == ("datasets", 10000, 0)
    assert composed("experiment=matlab") == config


@pytest.mark.parametrize(
    ("experiment", "method", "hidden_dims", "epochs", "learning_rate", "jitter", "negatives"),
    [
        ("paper", "supervised", [2000] * 4, 60, 0.01, 0, "hard"),
        ("paper_fast", "supervised", [2000] * 4, 40, 0.02, 0, "hard"),
        ("paper_jitter", "supervised", [2000] * 4, 500, 0.01, 2, "hard"),
        ("seed_repo", "supervised", [1000] * 3, 100, 0.01, 0, "uniform"),
        ("unsupervised", "unsupervised", [2000] * 4, 100, 0.01, 0, "hard"),
        ("local_receptive_fields", "unsupervised", [16 * 128, 9 * 220, 4 * 512], 60, 0.01, 0, "hard"),
        ("recurrent", "recurrent", [2000] * 2, 60, 0.01, 0, "hard"),
    ],
)
def test_experiments_are_what_was_published(experiment, method, hidden_dims, epochs, learning_rate, jitter, negatives):
    config = composed(f"experiment={experiment}")
    assert (config.name, config.method) == (experiment, method)
    assert config.model.hidden_dims == hidden_dims
    assert config.training.epochs == epochs
    assert config.training.learning_rate == learning_rate
    assert config.data.jitter == jitter
    assert config.training.negatives == negatives


def test_what_only_one_experiment_has_is_as_published():
    config = composed("experiment=local_receptive_fields")
    assert (config.model.grids, config.model.field) == ([4, 3, 2], 10)
    config = composed("experiment=recurrent").recurrent
    assert (config.damping, config.iterations) == (0.3, 8)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_file_says_how_to_run_it(experiment):
    assert composed(f"experiment={experiment}").name == experiment
    assert f"# python -m main experiment={experiment}" in (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()


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
        ("model.hidden_dims=[1000]", "model.hidden_dims=[1000]: must name at least two hidden layers"),
        ("model.hidden_dims=[1000,0]", "every width must be at least 1"),
        ("training.batch_size=0", "training.batch_size=0: must be at least 1"),
        ("training.epochs=0", "training.epochs=0: must be at least 1"),
        ("training.learning_rate=-0.1", "training.learning_rate=-0.1: must be at least 0"),
        ("training.learning_rate=nan", "training.learning_rate=nan"),
        ("training.momentum=1", "training.momentum=1.0: must be at least 0 and below 1"),
        ("model.temperature=0", "model.temperature=0.0: must be above 0"),
        ("training.negatives=easy", "training.negatives=easy: must be one of hard, uniform"),
        ("model.weight_scale=fan", "model.weight_scale=fan: must be one of fan_in, fan_out"),
        ("training.step=slow", "training.step=slow: must be one of fast, plain"),
        ("precision=fp8", "precision=fp8: must be one of auto, fp32, bf16"),
        ("device=tpu", "device=tpu: must be one of auto, cpu, cuda, mps"),
        ("data.validation_images=60000", "data.validation_images=60000: must be at least 0 and below 60000"),
        ("data.jitter=-1", "data.jitter=-1: must be at least 0"),
        ("evaluation.every=-1", "evaluation.every=-1: must be at least 0"),
        ("seed=-1", "seed=-1: must be at least 0"),
        ("experiment=papier", "there is no experiment/papier.yaml; there are "),
        ("training.epochs", "missing EQUAL"),
        ("method=adam", "method=adam: must be one of supervised, backprop, unsupervised, recurrent"),
        ("method=backprop training.compile=true", "training.compile=True: of no use to method=backprop"),
        ("method=backprop model.threshold=2", "model.threshold=2.0: of no use to method=backprop"),
        (
            "method=unsupervised training.negatives=uniform",
            "training.negatives=uniform: of no use to method=unsupervised",
        ),
        ("method=recurrent training.step=plain", "training.step=plain: of no use to method=recurrent"),
        ("method=unsupervised model.field=7", "model.field=7: of no use without model.grids"),
        ("training.step=plain training.compile=true", "training.compile=True: needs training.step=fast"),
        (
            "experiment=local_receptive_fields training.compile=true",
            "training.compile=True: of no use to local receptive fields",
        ),
        ("unsupervised.blurs=-1", "unsupervised.blurs=-1: must be at least 0"),
        ("unsupervised.readout_epochs=-1", "unsupervised.readout_epochs=-1: must be at least 0"),
        ("recurrent.weight_gain=-0.7", "recurrent.weight_gain=-0.7: must be at least 0"),
        ("recurrent.damping=1", "recurrent.damping=1.0: must be at least 0 and below 1"),
        ("recurrent.iterations=4", "recurrent.iterations=4: must be at least 5"),
        ("recurrent.first_learning_iteration=0", "first_learning_iteration=0: must be at least 1 and below 9"),
        ("recurrent.first_learning_iteration=9", "first_learning_iteration=9: must be at least 1 and below 9"),
        ("recurrent.iterations=5 recurrent.first_learning_iteration=6", "must be at least 1 and below 6"),
        ("model.grids=many", "model.grids: Invalid value"),
    ],
)
def test_refusals_name_the_key_and_the_rule(overrides, expected):
    assert expected in refusal(*overrides.split(" "))


LOCAL = ("method=unsupervised", "model.hidden_dims=[32,18,8]", "model.grids=[4,3,2]")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("method=supervised", "model.grids=[4, 3, 2]: of no use to method=supervised"),
        ("method=recurrent", "model.grids=[4, 3, 2]: of no use to method=recurrent"),
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
        ("model.field=11", "model.field=11: squares of so many pixels cannot be spread evenly"),
    ],
)
def test_refusals_of_local_receptive_fields(overrides, expected):
    assert expected in refusal(*LOCAL, *overrides.split(" "))


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "model.field=7",
        "model.field=1",
        "model.grids=[3,2] model.hidden_dims=[9,4] model.field=8",
        "model.grids=[2,1] model.hidden_dims=[4,1] model.field=27",
        "recurrent.iterations=5 recurrent.first_learning_iteration=5",
        "unsupervised.blurs=0 unsupervised.readout_epochs=0",
    ],
)
def test_what_just_about_fits_is_accepted(overrides):
    assert composed(*LOCAL, *overrides.split()).method == "unsupervised"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("training: {epochz: 3}", "in experiment/mine.yaml, there is no key training.epochz"),
        ("training: {epochs: many}", "in experiment/mine.yaml, training.epochs: Value 'many'"),
        ("training: {epochs: -3}", "training.epochs=-3: must be at least 1"),
        ("training: [", "mine.yaml"),
    ],
)
def test_an_experiment_file_is_checked_like_the_command_line(tmp_path, content, expected):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    assert expected in refusal(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")


def test_a_saved_run_may_have_had_other_defaults_for_what_it_did_not_use(tmp_path):
    values = src.config.composed("model.field=7")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(values))
    assert load_saved(tmp_path, DEFAULTS).model.field == 7


def test_a_missing_device_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device=cuda: this torch finds no CUDA device" in refusal("device=cuda")


DEFAULTS = src.config.composed()


@settings(max_examples=100, deadline=None)
@given(value=st.one_of(st.floats(), st.integers(-(2**70), 2**70), st.text(max_size=5), st.none()))
def test_any_learning_rate_is_accepted_or_refused_in_words(value):
    values = copy.deepcopy(DEFAULTS)
    try:
        values.training.learning_rate = value
        config = load(values)
    except USER_ERRORS as error:
        assert "learning_rate" in explain(error)
    else:
        assert math.isfinite(config.training.learning_rate)
        assert config.training.learning_rate >= 0
