"""The configuration: what is accepted, what is refused, and in which words."""

import re

import pytest
from omegaconf import OmegaConf

from src.config import errors, loading
from src.config.errors import USER_ERRORS, explain
from src.config.loading import CONFIGS, METHODS, load, load_saved
from src.config.values import Config, ConfigError
from src.methods import PUBLISHED, named

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
LOCAL = "method=unsupervised model.hidden_dims=[32,18,8] model.grids=[4,3,2]"


def composed(*overrides: str) -> Config:
    return load(loading.composed(*overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(USER_ERRORS) as caught:
        composed(*overrides)
    line = explain(caught.value)
    assert "\n" not in line
    return line


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
    assert experiment in [row.experiment for row in PUBLISHED if row.method == method]


def test_what_only_one_experiment_has_is_as_published():
    matlab = composed("experiment=matlab")
    assert matlab == composed()
    assert (matlab.model.goodness, matlab.model.loss, matlab.model.threshold) == ("sum_of_squares", "logistic", 1.0)
    assert (matlab.training.batch_size, matlab.training.weight_decay) == (100, 0.001)
    local = composed("experiment=local_receptive_fields")
    assert (local.model.grids, local.model.field) == ([4, 3, 2], 10)
    loewex = composed("experiment=loewex")
    assert loewex.model.peer_normalisation == pytest.approx(0.03 * 2 * (1 - loewex.model.peer_momentum) / 1000)
    assert (loewex.model.weight_scale, loewex.training.decay_in_momentum) == ("fan_out", True)
    for config, weight_decay in ((matlab, 0.001), (loewex, 0.0003)):
        assert (config.training.weight_decay, config.training.readout_weight_decay) == (weight_decay, 0.003)
        assert config.training.readout_learning_rate == 0.1
    recurrent = composed("experiment=recurrent")
    assert (recurrent.model.damping, recurrent.model.iterations) == (0.3, 8)


def test_every_method_and_every_data_set_can_be_chosen_by_its_name():
    assert METHODS == ["backprop", "recurrent", "supervised", "unsupervised"]
    for method in METHODS:
        config = composed(f"method={method}")
        assert config.method == method and isinstance(config, Config) and type(config.model) is named(method).Model
    datasets = {path.stem for path in (CONFIGS / "dataset").iterdir()}
    assert {composed(f"dataset={name}").dataset for name in datasets} == datasets == set(loading.DATASETS)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("+foo=1", "Key 'foo' not in 'Config'; full_key: foo"),
        ("+training.epochz=1", "Key 'epochz' not in 'Training'; full_key: training.epochz"),
        ("method=backprop model.threshold=2", "Key 'threshold' not in 'Model'; full_key: model.threshold"),
        ("~seed", "missing mandatory value: seed; full_key: seed"),
        ("training.epochs=many", "Value 'many' of type 'str' could not be converted to Integer; full_key: training"),
        ("hydra/launcher=papier", "`pip install hydra-joblib-launcher hydra-submitit-launcher` brings joblib and"),
        ("training.epochs", "missing EQUAL"),
        ("data.root=~/mnist", "data.root=~/mnist: LexerNoViableAltException: data.root=~/mnist; odd characters need"),
        ("model.hidden_dims=[1000]", "model.hidden_dims=[1000]: must be 2 or more widths of at least 1, because good"),
        ("model.goodness=badness", "model.goodness=badness: must be one of minus_sum_of_squares, sum_of_activities"),
        ("model.temperature=0", "model.temperature=0.0: must be above 0"),
        ("training.learning_rate=inf", "training.learning_rate=inf: must be at least 0 and below inf"),
        ("training.learning_rate=null", "field 'training.learning_rate' is not Optional"),
        ("training.batch_size=50001", "training.batch_size=50001: must be at most 50000, the number of training image"),
        ("data.validation_images=60000", "data.validation_images=60000: must be below the number of training images"),
        ("training.momentum=1", "training.momentum=1.0: must be at least 0 and below 1"),
        ("data.jitter=28", "data.jitter=28: must be below the images' smaller side, 28"),
        ("method=recurrent model.first_learning_iteration=9", "=9: must be at most model.iterations, 8"),
        ("method=recurrent model.field=-1", "model.field=-1: must be odd, as it is the square around a location, and "),
        ("method=unsupervised training.batch_size=49999", "leave no batch of less than 2"),
        (f"{LOCAL} model.grids=[4,3]", "model.grids=[4, 3]: must give each of 3 layers one location less per side"),
        (f"{LOCAL} model.field=11", "model.field=11: squares of so many pixels cannot be spread evenly"),
        (f"{LOCAL} model.hidden_dims=[32,18,9]", "9 units cannot be shared out evenly to 2 x 2 locations (model.grids"),
    ],
)  # fmt: skip
def test_refusals_name_the_key_and_the_rule(overrides, expected):
    assert expected in refusal(*overrides.split(" "))


@pytest.mark.parametrize(
    "overrides",
    [
        f"{LOCAL} model.field=1",
        f"{LOCAL} model.grids=[2,1] model.hidden_dims=[4,1] model.field=27",
        f"{LOCAL} training.blurs=0 training.readout_epochs=0 training.batch_size=2",
        "method=recurrent model.iterations=5 model.first_learning_iteration=5 model.hidden_dims=[1]",
        "data.validation_images=59999 training.batch_size=1",
        "name=1e3",
        "dataset=idx data.validation_images=60000 training.batch_size=60001",  # its size is known later
    ],
)
def test_what_just_about_fits_is_accepted(overrides):
    composed(*overrides.split(" "))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("training: {epochz: 3}", "'experiment/mine': .*: Key 'epochz' not in 'Training'; full_key: training.epochz$"),
        ("training: {epochs: -3}", "training.epochs=-3: must be at least 1"),
        ("training: [", "mine.yaml"),
    ],
)  # fmt: skip
def test_an_experiment_file_is_checked_like_the_command_line(tmp_path, content, expected):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    with pytest.raises(SystemExit) as ended, errors.one_line_errors():
        composed(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert re.search(f"^error: .*{expected}", ended.value.code) and "\n" not in ended.value.code


def test_a_saved_run_is_read_with_its_own_method_and_newer_keys_have_their_defaults(tmp_path):
    overrides = (*LOCAL.split(), "dataset=kmnist", "training.epochs=7")
    values = OmegaConf.to_container(loading.composed(*overrides))
    del values["training"]["blurs"], values["logging"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(values))
    assert load_saved(tmp_path) == composed(*overrides)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("training.step", "fast", "Key 'step' not in 'Training'; full_key: training.step; it is damaged, or of"),
        ("training.epochs", "many", "Value 'many' of type 'str' could not be converted to Integer; full_key: trainin"),
        ("method", "hebb", "Could not find 'method/hebb'"),
        ("model.threshold", -1, "model.threshold=-1.0: must be at least 0 and below inf; it is damaged, or of"),
    ],
)  # fmt: skip
def test_a_configuration_of_another_version_is_refused_in_one_line(tmp_path, key, value, expected):
    values = OmegaConf.create(OmegaConf.to_container(loading.composed()))
    OmegaConf.update(values, key, value, force_add=True)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(values))
    with pytest.raises(ConfigError) as caught:
        load_saved(tmp_path)
    line = str(caught.value).replace("In 'config': ", "")
    assert line.startswith(f"{tmp_path}/config.yaml: {expected}") and "\n" not in line


def test_an_error_is_one_line_or_keeps_its_traceback_for_who_asks(monkeypatch):
    with pytest.raises(SystemExit, match=r"^error: the one; the other$"), errors.one_line_errors():
        raise ConfigError("the one\n  the other")
    with pytest.raises(ValueError, match="a bug"), errors.one_line_errors():
        raise ValueError("a bug")
    monkeypatch.setattr(errors, "SHOW_TRACEBACK", True)
    with pytest.raises(ConfigError), errors.one_line_errors():
        raise ConfigError("the one")
