"""Tables and comparisons from files of runs, as the command line makes them."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any

import pytest
import torch
import yaml
from commands import REPOSITORY
from nets import examples
from omegaconf import OmegaConf
from test_config import EXPERIMENTS

from src import report
from src.config import loading
from src.config.loading import CONFIGS, composed
from src.experiment import new_net, train
from src.layers import layer
from src.methods import unsupervised
from src.results import runs
from src.results.runs import compared_values, flat, gather, grouped
from src.results.statistics import summarise, welch
from src.results.tables import duration, errors_table, ranges, result_table
from src.training import log as run_log
from src.training.log import RunLog, provenance, read_metrics, scalars

LAYERS = {"goodness_layer_1": 9.0, "goodness_layer_2": 8.0, "goodness_all_layers": 7.0}
ERRORS = {  # by method and rule, in percent, for two hidden layers
    "supervised": dict(goodness=1.4, one_pass=1.5, goodness_all_layers=1.3, goodness_layer_1=1.9, goodness_layer_2=1.6)
    | {"goodness_and_one_pass": 1.2},
    "backprop": dict(one_pass=1.4),
    "unsupervised": dict(one_pass=1.7, one_pass_all_layers=1.8, one_pass_layer_1=2.9, one_pass_layer_2=2.1),
    "recurrent": dict(goodness=1.6, one_pass=7.5, goodness_layer_1=1.95, goodness_layer_2=1.85)
    | {"goodness_all_iterations": 1.65},
}


def write_run(
    folder: Path, seed: int, goodness: float, one_pass: float = 5.0, without: tuple[str, ...] = (), **changed: Any
) -> Path:
    """A finished run; `changed` and `without` name keys of its configuration, section.key as section__key; and
    `changed` its device, hardware, precision and, by rule, the errors that stand in for a supervised net's.
    """
    errors = changed.pop("errors", {"goodness": goodness, "one_pass": one_pass} | LAYERS)
    measured = {"device": "cpu", "hardware": "a CPU", "precision": "fp32"}
    measured = {key: changed.pop(key, value) for key, value in measured.items()}
    config = composed(f"method={changed.pop('method', 'supervised')}")
    for name, value in ({"seed": seed, "data__root": str(folder)} | changed).items():
        OmegaConf.update(config, name.replace("__", "."), value, force_add=True)
    config = OmegaConf.to_container(config)
    for section, key in (name.split("__") for name in without):
        del config[section][key]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    result = {
        "hidden_dims": [30, 30], "epochs": 7, "train_images": 60000, **measured,
        "train_seconds": 90.0 + 10 * seed, "seconds_per_epoch": 2.0 + seed**2,
        **{f"test_error_{rule}": error for rule, error in errors.items()},
        **{key: config[key] for key in ("name", "method", "dataset", "seed")},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_seeds(folder: Path, errors: list[float], one_pass: list[float] | None = None, **changed: Any) -> Path:
    for seed, error in enumerate(errors):
        write_run(folder / str(seed), seed, error, one_pass[seed] if one_pass else error, **changed)
    return folder


def write_method(folder: Path, method: str, seeds: int = 1, **changed: Any) -> Path:
    """Finished runs with the errors of `method`, each seed's higher by 0.1."""
    for seed in range(seeds):
        errors = {rule: error + 0.1 * seed for rule, error in ERRORS[method].items()}
        write_run(folder / str(seed), seed, 0.0, errors=errors, method=method, **({"name": method} | changed))
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `python -m src.report ARGUMENT...` here, which says `told` on stderr; returns its output and its error."""

    def run(*arguments: Any, told: str = "") -> str:
        monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
        error, _ = "", capsys.readouterr()
        try:
            report.main()
        except SystemExit as stop:
            error = stop.code
        out, err = capsys.readouterr()
        assert err == told
        return out + error

    return run


def tables(text: str) -> list[list[dict[str, str]]]:
    """What `python -m src.report FOLDER` prints: errors over seeds, errors by layer, what the runs were measured on."""
    return [table_rows(table) for table in text.split("\n\n")]


def table_rows(text: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def student_two_sided_p(t: float, df: float) -> float:
    """By Simpson's rule over Student's density."""
    steps = 2000
    density = [(1 + (i * t / steps) ** 2 / df) ** (-(df + 1) / 2) for i in range(steps + 1)]
    integral = (density[0] + density[-1] + 4 * sum(density[1:-1:2]) + 2 * sum(density[2:-1:2])) * t / steps / 3
    return 1 - 2 * integral * math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(df * math.pi)


# --- The tables -----------------------------------------------------------------------------------------------------


def test_runs_that_differ_only_in_seed_and_folder_share_a_row(tmp_path, command):
    write_seeds(tmp_path / "a", [1.3, 1.4, 1.5, 1.6, 1.7], one_pass=[2.0, 2.0, 2.0, 2.0, 3.0])
    write_run(tmp_path / "b", 3, 3.0, training__learning_rate=0.02)
    errors, by_layer, measured = tables(command(tmp_path))
    assert [list(row.values()) for row in errors] == [
        ["matlab", "2 x 30", "7", "60,000", "0-4", "1.50 ± 0.16", "2.20 ± 0.45"],
        ["matlab, learning_rate=0.02", "2 x 30", "7", "60,000", "3", "3.00", "5.00"],
    ]
    assert list(by_layer[0].values()) == ["matlab", "goodness", "9.00 ± 0.00", "8.00 ± 0.00", "-", "-", "7.00 ± 0.00"]
    # t of 97.5 % with 4 degrees of freedom is 2.776; 2.776 * 0.15811 / sqrt(5) = 0.196
    assert list(measured[0].values()) == ["matlab", "a CPU, fp32", "by goodness", "1.50 [1.30, 1.70]"]
    assert list(measured[1].values()) == ["matlab, learning_rate=0.02", "a CPU, fp32", "by goodness", "3.00"]


def test_configurations_of_older_and_newer_versions_share_a_row(tmp_path, command):
    write_run(tmp_path / "0", 0, 1.4)
    write_run(tmp_path / "1", 1, 1.6, without=("model__goodness", "model__loss", "data__jitter", "training__compile"))
    write_run(tmp_path / "2", 2, 1.8, logging__tensorboard=True, resume="x", evaluation__every=0, device="cpu")
    (row,) = tables(command(tmp_path))[0]
    assert (row["run"], row["seeds"]) == ("matlab", "0-2")
    write_run(tmp_path / "3", 3, 1.8, without=("training__epochs",), model__temperature=2.0)
    assert [row["seeds"] for row in tables(command(tmp_path))[0]] == ["0-2", "3"]


def test_changed_values_are_short_and_from_those_of_the_experiment_of_that_name_else_of_the_method(tmp_path, command):
    write_run(
        tmp_path / "0", 0, 1.4, training__batch_size=50, training__negatives="uniform", model__peer_normalisation=6e-6,
        training__decay_in_momentum=True, model__hidden_dims=[20, 10], training__epochs=3, data__validation_images=0,
        model__of_the_future="x", dataset="kmnist",
    )  # fmt: skip
    write_run(tmp_path / "a", 0, 1.4, name="minute", data__jitter=1, training__learning_rate=0.03)
    write_run(tmp_path / "b", 0, 1.4, name="my, own", training__learning_rate=0.03, dataset="fashion_mnist")
    write_method(tmp_path / "c", "recurrent", name="my own", model__damping=0.2)
    write_method(tmp_path / "d", "backprop", name="matlab")
    assert [row["run"] for row in tables(command(tmp_path))[0]] == [
        "matlab, dataset=kmnist, peer_normalisation=6e-06, training.batch_size=50, decay_in_momentum=true, "
        "negatives=uniform, of_the_future=x",
        "minute, learning_rate=0.03", "my, own, dataset=fashion_mnist, learning_rate=0.03", "my own, damping=0.2",
        "matlab, method=backprop",
    ]  # fmt: skip


def test_rows_of_one_name_are_told_apart_by_what_they_differ_in_and_hardware_makes_no_row(tmp_path, command):
    for seed, threads in enumerate(("2 threads", "1 thread", "12 threads")):
        write_run(tmp_path / "0" / str(seed), seed, 1.4, hardware=f"a CPU, {threads}")
    write_run(tmp_path / "1", 3, 1.4, hardware="a GPU")
    write_run(tmp_path / "2", 2, 1.4, hardware="a GPU", precision="bf16")
    write_run(tmp_path / "3", 3, 1.4, name="mine", hardware="a GPU")
    write_method(tmp_path / "4", "recurrent", name="mine")
    write_run(tmp_path / "5", 3, 1.4, name="twice", data__validation_images=0)
    half = write_run(tmp_path / "6", 3, 1.4, name="twice", precision="bf16") / "result.json"
    half.write_text(half.read_text().replace("60000", "30000").replace("[30, 30]", "[30, 20]"))
    names = ["matlab, fp32", "matlab, bf16", "mine, supervised", "mine, recurrent", "twice, 2 x 30", "twice, 30-20"]
    for table in tables(command(tmp_path)):
        assert [row["run"] for row in table] == names
    assert [row["hardware, precision"] for row in table[:2]] == ["a CPU, a GPU, 1, 2, 12 threads, fp32", "a GPU, bf16"]
    rows = table_rows(command("--published", *(tmp_path / name for name in "012")))
    assert [(row["experiment"], row["n"]) for row in rows if "matlab" in row["experiment"]] == [
        ("`matlab`, fp32", "4"), ("`matlab`, bf16", "1"),
    ]  # fmt: skip


def test_a_repeated_seed_counts_once_and_is_named(tmp_path, command):
    first, again = write_run(tmp_path / "a", 0, 1.4), write_run(tmp_path / "c", 0, 9.9)
    write_run(tmp_path / "b", 1, 1.6)
    told = f"not counted {again}: the same seed as {first}\n"
    (row,) = tables(command(tmp_path / "c", tmp_path, told=told))[2]  # whatever the order, and c is there twice
    assert row["% [95 % interval]"] == "1.50 [0.23, 2.77]"  # 12.706 * 0.1


def test_folders_are_gathered_and_what_is_no_finished_run_is_named(tmp_path, capsys):
    sweep = tmp_path / "multirun" / "2030-01-01"
    write_run(sweep / "0_matlab_seed0", 0, 1.4)
    (sweep / "multirun.yaml").write_text("hydra: {}\n")
    (sweep / "0_matlab_seed0" / ".hydra").mkdir()
    (sweep / "0_matlab_seed0" / ".hydra" / "config.yaml").write_text("seed: 0\n")
    single = write_run(tmp_path / "outputs" / "a", 1, 1.4)
    bad = {name: write_run(sweep / name, 7, 1.4) for name in "abcdefghi"}
    bad["j"] = write_run(sweep / "j", 7, 1.4, errors={"goodness_layer_1": 1.4})
    bad["k"] = write_run(sweep / "k", 7, 1.4, dataset="fashion")
    bad["l"] = write_run(sweep / "l", 7, 1.4)
    for name in "ab":
        (bad[name] / "result.json").unlink()
    (bad["b"] / "config.yaml").rename(bad["b"] / "metrics.jsonl")
    (bad["c"] / "config.yaml").unlink()
    (bad["d"] / "result.json").write_text('{"name": "matl')
    (bad["e"] / "result.json").write_text("[1, 2]")
    (bad["f"] / "result.json").write_text((bad["f"] / "result.json").read_text().replace("1.4", "NaN"))
    (bad["g"] / "config.yaml").write_text("")
    (bad["h"] / "config.yaml").write_text("name: [matlab\n")
    (bad["i"] / "config.yaml").write_text("{name: matlab, seed: 7, method: backprop, dataset: mnist}\n")
    for path in bad["l"].iterdir():
        path.write_text(path.read_text().replace("supervised", "telepathy"))
    assert [run.result["seed"] for run in gather([tmp_path / "multirun", single])] == [0, 1]
    skipped = capsys.readouterr().err.splitlines()
    reasons = dict(re.fullmatch(r"skipped (.*?): (.*)", line).groups() for line in skipped)
    assert list(reasons) == [str(folder) for folder in bad.values()]
    words = [
        "not finished", "not finished", "no config.yaml", "result.json cannot be read", "not that of a run",
        "(no usable test_error_goodness)", "config.yaml is not that of its", "config.yaml cannot be read",
        "(another name, method, dataset, seed)", "(no usable test_error_goodness or test_error_one_pass)",
        "there is no dataset fashion here", "there is no method telepathy here",
    ]  # fmt: skip
    assert all(word in reason for reason, word in zip(reasons.values(), words, strict=True))


def test_runs_of_every_method_stand_in_the_same_tables(tmp_path, command):
    for method in ERRORS:
        write_method(tmp_path / "runs" / method, method, seeds=2, name=method[:5])
    file = tmp_path / "table.csv"
    errors, by_layer, measured = tables(command(tmp_path / "runs", "--csv", file))
    columns = ("run", "% by goodness", "% in one pass")
    assert [tuple(row[column] for column in columns) for row in errors] == [
        ("backp", "-", "1.45 ± 0.07"),
        ("recur", "1.65 ± 0.07", "7.55 ± 0.07"),
        ("super", "1.45 ± 0.07", "1.55 ± 0.07"),
        ("unsup", "-", "1.75 ± 0.07"),
    ]
    columns = ("run", "by", "layer 1", "layer 2", "layer 3", "all")
    assert [tuple(row[column] for column in columns) for row in by_layer] == [
        ("recur", "goodness", "2.00 ± 0.07", "1.90 ± 0.07", "-", "1.70 ± 0.07"),
        ("super", "goodness", "1.95 ± 0.07", "1.65 ± 0.07", "-", "1.35 ± 0.07"),
        ("unsup", "a read-out", "2.95 ± 0.07", "2.15 ± 0.07", "-", "1.85 ± 0.07"),
    ]
    assert [row["rule"] for row in measured] == ["in one pass", "by goodness", "by goodness", "in one pass"]
    assert max(len(table[0]) for table in (errors, by_layer, measured)) == 7
    assert len(tables(command(tmp_path / "runs" / "backprop"))) == 2  # none by layer
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):  # empty what a method does not have
        rules = {column.removesuffix("_mean") for column, value in row.items() if column.endswith("_mean") and value}
        assert rules == ERRORS[row["method"]].keys()


def test_every_experiment_stands_beside_what_was_published(tmp_path, command):
    dims = [2000] * 4
    rates = {f"training__{key}learning_rate": 1.0 for key in ("", "readout_")}
    decays = {f"training__{key}weight_decay": 0.0005 for key in ("", "readout_")}
    full, local = {"data__validation_images": 0}, {"model__hidden_dims": [2048, 1980, 2048], "training__epochs": 60}
    write_seeds(tmp_path / "a", [1.3, 1.4, 1.5])
    write_run(tmp_path / "b", 3, 3.0, training__learning_rate=0.02)
    write_run(tmp_path / "c", 4, 3.0, **full)  # other images than the Matlab code's
    write_run(tmp_path / "d", 5, 3.0, name="paper", model__hidden_dims=dims, training__epochs=60)
    write_method(tmp_path / "e", "backprop", training__epochs=20, **rates, **decays, **full)
    write_method(tmp_path / "f", "unsupervised", model__hidden_dims=dims, training__learning_rate=0.005, **full)
    write_method(tmp_path / "g", "unsupervised", name="local_receptive_fields", model__grids=[4, 3, 2], **local, **full)
    write_method(tmp_path / "h", "recurrent", seeds=2, model__hidden_dims=dims[:2], training__epochs=60, **full)
    write_run(tmp_path / "i", 0, 9.0, 1.9, name="quick", training__epochs=10)
    for seed, error in enumerate([0.6, 0.7]):  # judged by a rule of its own
        errors = {"goodness": 0.8, "one_pass": 0.9, "goodness_and_one_pass": error}
        own = {"model__loss": "symba", "model__temperature": 50.0, "training__adversarial": 0.5, "data__jitter": 2}
        own |= {"name": "record_jitter", "errors": errors, "training__epochs": 300}
        device = ["cpu", "cuda"][seed]
        write_run(tmp_path / "j" / str(seed), seed, 0.0, device=device, **own, **full)
    lines = table_rows(command("--published", tmp_path))
    rows = {row["experiment"].strip("`"): list(row.values())[1:] for row in lines}
    assert list(rows) == EXPERIMENTS
    *_, (own,) = tables(command(tmp_path / "j"))
    assert (own["rule"], own["% [95 % interval]"]) == ("by both rules", "0.65 [0.01, 1.29]")
    assert rows == dict.fromkeys(EXPERIMENTS) | {
        "backprop": ["3.1", "about 1.4 in one pass", "1.40", "1", "90 s", "-"],
        "local_receptive_fields": ["3.2", "1.16 in one pass", "1.70", "1", "90 s", "-"],
        "loewex": ["3.3", "1.45 in one pass", "-", "0", "-", "-"],
        "matlab": ["3.3", "1.47 by goodness", "1.40 ± 0.10", "3", "90 s", "-"],
        "minute": ["-", "-", "-", "0", "-", "-"],
        "paper": ["3.3", "1.36 by goodness", "-", "0", "-", "-"],
        "paper_fast": ["3.3", "1.46 by goodness", "-", "0", "-", "-"],
        "paper_jitter": ["3.3", "0.64 by goodness", "-", "0", "-", "-"],
        "quick": ["-", "-", "9.00", "1", "90 s", "-"],
        "record": ["-", "-", "-", "0", "-", "-"],
        "record_dropout": ["-", "-", "-", "0", "-", "-"],
        "record_jitter": ["-", "-", "0.65 ± 0.07", "2", "90 s", "100 s"],
        "recurrent": ["3.4", "1.31 by goodness", "1.65 ± 0.07", "2", "90 s", "-"],
        "unsupervised": ["3.2", "1.37 in one pass", "1.70", "1", "90 s", "-"],
    }


def test_an_experiment_that_hydra_refuses_is_one_line(tmp_path, monkeypatch, command):
    configs = shutil.copytree(CONFIGS, tmp_path / "configs")
    (configs / "experiment" / "mistyped.yaml").write_text("# @package _global_\nname: mistyped\ntraining: {epoch: 3}\n")
    monkeypatch.setattr(runs, "CONFIGS", configs)
    monkeypatch.setattr(loading, "CONFIGS", configs)
    write_run(tmp_path / "run", 0, 1.4, name="mistyped")
    error = command(tmp_path / "run")
    assert error.startswith("error: in experiment/mistyped.yaml, there is no key training.epoch ") and "\n" not in error


def test_all_hardware_of_a_resumed_run_is_named(tmp_path, command):
    earlier = [{"hardware": "a CPU, 2 threads"}, {"hardware": "another CPU, 2 threads"}]
    folder = write_run(tmp_path / "run", 0, 1.4, hardware="a CPU, 1 thread")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"resumed_from": earlier}))
    assert tables(command(tmp_path))[-1][0]["hardware, precision"] == "a CPU, another CPU, 1, 2 threads, fp32"


def test_the_squares_of_local_receptive_fields_count_only_where_there_are_any(tmp_path, command):
    rate = {"training__learning_rate": 0.005}
    write_method(tmp_path / "dense", "unsupervised", model__field=10, **rate)
    write_run(tmp_path / "dense_too", 1, 0.0, method="unsupervised", name="unsupervised", model__field=14, **rate)
    write_method(tmp_path / "local", "unsupervised", model__grids=[4, 3], model__field=10, **rate)
    write_method(tmp_path / "local_too", "unsupervised", model__grids=[4, 3], model__field=13, **rate)
    rows, local = tables(command(tmp_path))[0], "unsupervised, grids=[4,3]"
    expected = [("unsupervised", "0, 1"), (local, "0"), (f"{local}, field=13", "0")]
    assert [(row["run"], row["seeds"]) for row in rows] == expected


@pytest.mark.parametrize(
    "overrides", [*(f"method={method}" for method in ERRORS), "method=unsupervised model.grids=[2,1]"]
)
def test_a_value_makes_no_other_row_just_where_the_trained_net_is_the_same(tmp_path, monkeypatch, overrides):
    # One more of what there is only one of.
    monkeypatch.setitem(layer.LOSSES, "another", lambda G, negative, **_: (G, -G / 9, negative / 9))
    monkeypatch.setitem(unsupervised.NEGATIVE_IMAGES, "another", lambda images, generator, blurs: images.flip(1))
    config = composed(
        *overrides.split(), "model.hidden_dims=[8,6]", "training.epochs=2", "training.batch_size=10", "device=cpu",
        "precision=fp32",
    )  # fmt: skip
    if config.method == "unsupervised":
        config.training.readout_epochs = 1

    def trained(key: str, value: Any) -> dict[str, torch.Tensor]:
        values = config.copy()
        OmegaConf.update(values, key, value)
        values = OmegaConf.to_object(values)
        (tmp_path / key).mkdir()
        net = new_net(values)
        train(values, net, examples(40), examples(10), tmp_path / key, {}, False)
        return net.state_dict()

    def another(value: Any) -> Any:
        names = {"fan_in": "fan_out", "hard": "uniform", "sum_of_squares": "sum_of_activities"}
        if isinstance(value, (str, list)):
            return names.get(value, "another") if isinstance(value, str) else [*value[:-1], value[-1] + 1]
        if isinstance(value, bool):
            return not value
        if isinstance(value, float):
            return value / 2 or 0.5
        return value + 2

    values, reference = flat(OmegaConf.to_container(config)), trained("resume", None)
    compared = compared_values(values)
    for key, value in values.items():
        compared_here = key.startswith(("model.", "training.", "evaluation.", "data.jitter"))
        if not compared_here or value is None or key == "training.compile":  # which takes half a minute
            continue
        state = trained(key, another(value))
        same = all(state[name].equal(reference[name]) for name in reference.keys() | state)
        assert same == (key not in compared), key
    assert "training.compile" not in compared


def test_the_kept_results_are_all_read(capsys):
    runs = gather([REPOSITORY / "results"])
    assert len(runs) == len(list((REPOSITORY / "results").rglob("result.json")))
    assert capsys.readouterr().err == ""
    folders = [{run.folder.parent.name for run in group} for group in grouped(runs, "precision")]
    assert all(len(names) == 1 for names in folders)  # a folder of seeds is one configuration and precision
    assert len(folders) == len(set.union(*folders))


def test_without_results_the_command_fails_with_one_line_and_a_run_does_not_wait_for_scipy(tmp_path, command):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "x", tmp_path / "file"):
        assert command(folder) == f"error: there is no folder {folder}"
    code = (
        "import runpy, sys, src.report; assert 'scipy' not in sys.modules; del sys.modules['src.report']; "
        "runpy.run_module('src.report', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stderr == f"error: there is no finished run below {tmp_path}\n"
    assert done.returncode == 1


def test_validation_errors_are_those_of_the_last_epoch(tmp_path, command):
    def validate(folder: Path, *counts: int) -> None:
        layers = {"goodness_layer_1": 60, "goodness_layer_2": 50}
        errors = [{"goodness": count, "one_pass": 30} | layers for count in counts]
        records = [{"epoch": 1, "validation_errors": of_epoch, "validation_images": 2000} for of_epoch in errors]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    for seed in (0, 1):  # tested at 9 and 1 %, validated at 1.0 and 1.2, then 2.0 and 2.2
        validate(write_run(tmp_path / "a" / str(seed), seed, 9.0), 99, 20 + 4 * seed)
        validate(write_run(tmp_path / "b" / str(seed), seed, 1.0, training__momentum=0.5), 40 + 4 * seed)
    out = command("--validation", tmp_path)
    assert out.startswith("On the validation images:\n\n")
    _, errors, by_layer, measured = tables(out)
    assert [row["% by goodness"] for row in errors] == ["1.10 ± 0.14", "2.10 ± 0.14"]
    assert by_layer[0]["layer 1"] == "3.00 ± 0.00" and measured[0]["rule"] == "by goodness"
    out = command("--compare", "--validation", tmp_path)
    assert table_rows(out)[0]["validation error (%)"] == "by goodness"
    assert "by goodness: 'momentum=0.9' has the lower error: 1.10 against 2.10 %" in out
    (tmp_path / "b" / "0" / "metrics.jsonl").unlink()
    (tmp_path / "b" / "1" / "metrics.jsonl").write_text('{"epoch": 1}\n')
    reason = "there are no validation errors in the last line of its metrics.jsonl"
    told = "".join(f"skipped {tmp_path / 'b' / seed}: {reason}\n" for seed in "01")
    _, (row,), *_ = tables(command("--validation", tmp_path, told=told))
    assert row["seeds"] == "0, 1"
    nothing = f"error: there is no finished run with validation errors below {tmp_path / 'b'}"
    assert command("--validation", tmp_path / "b", told=told) == nothing


# --- CSV ------------------------------------------------------------------------------------------------------------


def test_csv_holds_the_figures_of_the_table_in_full(tmp_path, command):
    write_seeds(tmp_path / "runs" / "a", [1.31, 1.47, 1.52], one_pass=[1.3, 1.3, 1.6])
    write_run(tmp_path / "runs" / "b", 4, 3.0, training__negatives="uniform", training__momentum=0.5)
    file = tmp_path / "table.csv"
    assert command(tmp_path / "runs", "--csv", file) == command(tmp_path / "runs")
    first, second = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    centre, std = 4.3 / 3, stdev([1.31, 1.47, 1.52])
    half = 4.302652729911275 * std / math.sqrt(3)  # t of 97.5 % with 2 degrees of freedom
    figures = [float(first[f"goodness_{name}"]) for name in ("n", "mean", "std", "low", "high")]
    assert figures == pytest.approx([3, centre, std, centre - half, centre + half], rel=1e-9)
    assert float(first["one_pass_mean"]) == pytest.approx(1.4)
    assert (first["seeds"], first["images"], first["published"]) == ("0 1 2", "60000", "1.47 by goodness")
    assert (second["changed"], second["published"]) == ("momentum=0.5, negatives=uniform", "")
    assert (first["cpu_seconds"], first["gpu_seconds"]) == ("90.0", "")
    assert (first["precision"], first["hardware"]) == ("fp32", "a CPU")
    assert [second[f"goodness_{name}"] for name in ("n", "mean", "std", "low", "high")] == ["1", "3.0", "", "", ""]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["table.csv"]


def test_csv_goes_where_a_link_points_to(tmp_path, command):
    write_run(tmp_path / "run", 0, 1.4)
    (tmp_path / "link").symlink_to(tmp_path / "table.csv")
    command(tmp_path / "run", "--csv", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "table.csv").read_text().startswith("run,")


@pytest.mark.parametrize("name", ["missing/table.csv", "runs", "."])
def test_a_csv_that_cannot_be_written_is_one_line(tmp_path, command, monkeypatch, name):
    write_run(tmp_path / "runs", 0, 1.4)
    monkeypatch.chdir(tmp_path)
    tables = command("runs")
    assert re.fullmatch(re.escape(f"{tables}error: {name} cannot be written: ") + ".+", command("runs", "--csv", name))


# --- Comparisons ----------------------------------------------------------------------------------------------------


def test_a_difference_is_told_with_its_interval_from_either_side(tmp_path, command):
    hard, uniform = [1.36, 1.41, 1.46, 1.51, 1.56], [1.55, 1.60, 1.65, 1.70, 1.75]
    write_seeds(tmp_path / "a", hard, one_pass=uniform)
    write_seeds(tmp_path / "b", uniform, one_pass=hard, training__negatives="uniform", name="u")
    out = command("--compare", tmp_path / "b", tmp_path / "a")
    # Both variances are 0.00625: 8 degrees of freedom, standard error 0.05, t = 3.8, 97.5 % at 2.306.
    p = student_two_sided_p(3.8, 8)
    ends = f"1.46 against 1.65 %, difference 0.19 [0.07, 0.31], p = {p:.2g} (Welch's t-test, n = 5 and 5)"
    assert out.splitlines()[-2:] == [
        f"by goodness: 'negatives=hard' has the lower error: {ends}",
        f"in one pass: 'negatives=uniform' has the lower error: {ends}",
    ]
    goodness, one_pass = table_rows(out)
    assert (goodness["first - second"], one_pass["first - second"]) == ("-0.19 [-0.31, -0.07]", "0.19 [0.07, 0.31]")
    assert (goodness["t"], one_pass["t"], goodness["degrees of freedom"]) == ("-3.80", "3.80", "8.0")
    assert (goodness["p"], goodness["negatives=hard"]) == (f"{p:.2g}", "1.46 ± 0.08 [1.36, 1.56]")


def test_no_difference_shown_and_other_hardware_is_told(tmp_path, command):
    write_seeds(tmp_path / "a", [1.40, 1.50], hardware="a GPU", precision="bf16", evaluation__batch_size=7)
    write_run(tmp_path / "a" / "2", 2, 1.6, 1.6)
    write_seeds(tmp_path / "b", [1.45, 1.55], training__batch_size=50)
    resumed = tmp_path / "b" / "0" / "result.json"
    resumed.write_text(json.dumps(json.loads(resumed.read_text()) | {"resumed_from": [{"hardware": "another CPU"}]}))
    out = command("--compare", tmp_path)
    sentence = "by goodness: no difference shown: 'training.batch_size=100' 1.50 and 'training.batch_size=50' 1.50 %, "
    _, _, _, _, _, goodness, _, *differing = out.splitlines()
    assert goodness.startswith(f"{sentence}difference 0.00 [-0.")
    assert goodness.endswith("p = 1 (Welch's t-test, n = 3 and 2)")
    assert differing == [
        "hardware differs: 'training.batch_size=100' a CPU, a GPU; 'training.batch_size=50' a CPU, another CPU",
        "precision differs: 'training.batch_size=100' bf16, fp32; 'training.batch_size=50' fp32",
    ]


def test_one_configuration_is_compared_by_precision(tmp_path, command):
    write_seeds(tmp_path / "a", [1.4, 1.5, 1.6])
    write_seeds(tmp_path / "b", [2.4, 2.5, 2.6], precision="bf16")
    out = command("--compare", tmp_path)
    assert "by goodness: 'precision=fp32' has the lower error: 1.50 against 2.50 %" in out
    assert "precision differs" not in out


def test_figures_without_any_spread_are_not_tested(tmp_path, command):
    write_seeds(tmp_path / "a", [1.46] * 3, one_pass=[1.5] * 3)
    write_seeds(tmp_path / "b", [1.46] * 2, one_pass=[1.7] * 2, training__momentum=0.5)
    out = command("--compare", tmp_path)
    goodness, one_pass = out.splitlines()[-2:]
    assert goodness == "by goodness: no difference shown: 1.46 % with every seed of both (n = 3 and 2)"
    assert one_pass.startswith("in one pass: no test is possible: 'momentum=0.9' 1.50 and 'momentum=0.5' 1.70 % with")
    assert "nan" not in out and "inf" not in out


def test_methods_are_compared_by_the_rules_that_both_have(tmp_path, command):
    write_method(tmp_path / "a", "supervised", seeds=3, training__negatives="uniform")
    write_method(tmp_path / "b", "backprop", seeds=2)
    write_method(tmp_path / "c", "unsupervised", seeds=2, training__blurs=5)
    out = command("--compare", tmp_path / "a", tmp_path / "b")
    goodness, one_pass, both = table_rows(out)
    ours, theirs = "method=supervised, negatives=uniform", "method=backprop"
    assert (goodness[ours], goodness[theirs], goodness["p"]) == ("1.50 ± 0.10 [1.25, 1.75]", "-", "-")
    assert (both[ours], both[theirs], both["p"]) == ("1.30 ± 0.10 [1.05, 1.55]", "-", "-")
    assert one_pass["first - second"].startswith("0.15 [")
    (sentence,) = out.splitlines()[6:]
    assert sentence.startswith(f"in one pass: no difference shown: '{ours}' 1.60 and '{theirs}' 1.45 %")
    (row,) = table_rows(command("--compare", tmp_path / "b", tmp_path / "c"))
    assert row["test error (%)"] == "in one pass"
    assert row["method=unsupervised, blurs=5"] == "1.75 ± 0.07 [1.11, 2.39]"
    for seed in (0, 1):
        write_run(tmp_path / "d" / str(seed), seed, 0.0, errors={"goodness": 1.4 + seed}, training__momentum=0.5)
    assert command("--compare", tmp_path / "b", tmp_path / "d") == (
        "error: --compare needs a way to classify that both configurations have: 'method=backprop, momentum=0.9' "
        "in one pass and 'method=supervised, momentum=0.5' by goodness have none in common"
    )


def test_comparisons_that_cannot_be_made_are_one_line(tmp_path, command):
    write_seeds(tmp_path / "a", [1.4, 1.5])
    error = command("--compare", tmp_path)
    assert f"error: --compare takes two configurations, not 1: matlab (the defaults), as in {tmp_path}/a/0. Gi" in error
    write_run(tmp_path / "b", 4, 1.4, training__momentum=0.5)
    error = command("--compare", tmp_path)
    assert error == "error: --compare takes two seeds or more of each configuration; there is one of 'momentum=0.5'"
    write_run(tmp_path / "c", 4, 1.4, name="c", training__epochs=5)
    error = command("--compare", tmp_path)
    assert error.startswith("error: --compare takes two configurations, not 3: ") and "\n" not in error
    assert f"; matlab (momentum=0.5), as in {tmp_path / 'b'}; c (epochs=5), as in {tmp_path / 'c'}. Give" in error


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("first", [[1.40, 1.52, 1.45, 1.61], [1.46] * 4], ids=["two samples", "one without spread"])
def test_welch_is_what_the_formulas_give(first):
    second = [1.72, 1.30, 1.95, 2.20, 1.50, 1.88]
    a, b = variance(first) / 4, variance(second) / 6
    t, df = (mean(first) - mean(second)) / math.sqrt(a + b), (a + b) ** 2 / (a**2 / 3 + b**2 / 5)
    test = welch(first, second)
    assert (test.difference, test.t, test.df) == pytest.approx((mean(first) - mean(second), t, df), rel=1e-9)
    assert test.p == pytest.approx(student_two_sided_p(abs(t), df), rel=1e-6)
    half = (test.high - test.low) / 2
    assert (test.low + test.high) / 2 == pytest.approx(test.difference)
    assert student_two_sided_p(half / math.sqrt(a + b), df) == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (31, 2.042)])
def test_intervals_use_the_textbook_quantiles(n, quantile):
    summary = summarise([float(i) for i in range(n)])
    assert (summary.high - summary.mean) * math.sqrt(n) / summary.std == pytest.approx(quantile, abs=5e-4)
    assert summary.mean - summary.low == pytest.approx(summary.high - summary.mean)


# --- What a run prints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "published", "layers"),
    [
        ("supervised", [("1.36", "-"), ("1.46", "-"), ("0.64", "-"), ("1.47", "-"), ("-", "1.45")],
         "goodness of layer 1 alone 1.90, layer 2 alone 1.60, all layers 1.30; by both rules 1.20"),
        ("backprop", [("about 1.4",)], None),
        ("unsupervised", [("1.37",), ("1.16",)],
         "a read-out of layer 1 alone 2.90, layer 2 alone 2.10, all layers 1.80"),
        ("recurrent", [("1.31", "-")],
         "goodness of layer 1 alone 1.95, layer 2 alone 1.85, all layers at all iterations 1.65"),
    ],
)  # fmt: skip
def test_the_closing_table_is_that_of_the_method(method, published, layers):
    result = {
        "name": "mine", "method": method, "hidden_dims": [30, 30], "epochs": 7, "train_images": 60000, "seed": 3,
        "dataset": "mnist", "precision": "fp32", "device": "cpu", "hardware": "a CPU", "train_seconds": 70.0,
        "seconds_per_epoch": 10.0, "readout_epochs": 2 if method == "unsupervised" else 0, "test_images": 10000,
        **{f"test_error_{rule}": error for rule, error in ERRORS[method].items()},
    }  # fmt: skip
    text = result_table(result)
    ours, *others = table_rows(text)
    rules = [rule for rule in ("goodness", "one_pass") if rule in ERRORS[method]]
    header = ["test error (%) by goodness", "in one pass"] if len(rules) == 2 else ["test error (%) in one pass"]
    assert list(ours) == ["", "net", "epochs", *header]
    assert list(ours.values()) == ["this run (mine)", "2 x 30", "7", *(f"{ERRORS[method][rule]:.2f}" for rule in rules)]
    assert [tuple(row[column] for column in header) for row in others] == published
    line, *protocol = text.rpartition("|")[2].strip().splitlines()
    assert not layers or line == f"Test error (%) by {layers}."
    alone = " and 2 of the read-outs alone" if method == "unsupervised" else ""
    trained = f"Trained on 60,000 images of mnist, 7 epoch(s){alone}, seed 3, fp32 on cpu"
    assert [line, *protocol][-1].startswith(trained) and len(protocol) == bool(layers)
    elsewhere = result_table(result | {"dataset": "kmnist"})
    (row,) = table_rows(elsewhere)
    assert row[""] == "this run (mine, on kmnist)" and "60,000 images of kmnist" in elsewhere


def test_a_net_tested_again_has_the_rules_of_its_method():
    now = {"one_pass": 170, "one_pass_all_layers": 180, "one_pass_layer_1": 290}
    text = errors_table({"test_images": 10000, "test_errors": now, "test_errors_before": {"one_pass": 171}})
    assert [tuple(row.values()) for row in table_rows(text)] == [
        ("one_pass", "1.70", "170", "171"), ("one_pass_all_layers", "1.80", "180", "-"),
        ("one_pass_layer_1", "2.90", "290", "-"),
    ]  # fmt: skip


def test_epochs_without_losses_of_layers_are_told_by_the_cross_entropy(tmp_path, caplog):
    caplog.set_level("INFO")
    figures = {"loss": [], "pairs_ordered_wrongly": [], "readout_loss": 0.25}
    validation = {"validation_images": 200, "validation_errors": {"one_pass": 3, "one_pass_layer_1": 4}}
    with RunLog(tmp_path, 2, classes=10) as run_log:
        run_log.epoch({"epoch": 1, "gain": 1.0, **figures, **validation})
        run_log.epoch({"epoch": 2, "gain": 0.5, **figures})
    told = [f"epoch {epoch}/2  cross-entropy 0.25, val. error 1.50 %" for epoch in (1, 2)]
    assert [line.partition(", 00:")[0] for line in caplog.messages] == told
    validated = {"validation error (%)/one_pass": 1.5, "validation error (%)/one_pass_layer_1": 2.0}
    first, second = [scalars(record) for record in read_metrics(tmp_path)]
    assert first == {"gain": 1.0, "loss/read-out": 0.25} | validated
    assert second == {"gain": 0.5, "loss/read-out": 0.25}


@pytest.mark.parametrize(
    ("pairs", "readout_loss", "told"),
    [
        ([0.2, 0.7, 1.0], 9.0, "layer 2 tells positives from negatives no better than chance; another training."),
        ([1.0, 1.0], 9.0, "layer 1 has fallen silent; a lower training.learning_rate may help"),
        ([0.1, 0.2], 2.31, "the read-out is no better than chance; a lower training.readout_learning_rate may help"),
        ([], 2.31, "the read-out is no better than chance; lower learning rates may help"),
        ([0.1, 0.2], 0.1, None),
    ],
)
def test_a_net_that_learns_nothing_is_told_once_with_layer_and_key(tmp_path, caplog, pairs, readout_loss, told):
    with RunLog(tmp_path, 9, classes=10) as run_log:
        for epoch in range(1, 6):
            figures = {"loss": [1.0] * len(pairs), "pairs_ordered_wrongly": pairs, "readout_loss": readout_loss}
            run_log.epoch({"epoch": epoch, "gain": 1.0, **figures})
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(told) and all(line.startswith(f"epoch 3: {told}") for line in warnings)


def test_the_commit_is_marked_where_the_code_is_another(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    inside = tmp_path / "copy"
    for folder in (tmp_path / "src", inside / "src"):
        folder.mkdir(parents=True)
    git("init")
    git("commit", "--allow-empty", "-m", "first")
    monkeypatch.setattr(run_log, "REPOSITORY", tmp_path)
    (tmp_path / "notes.txt").touch()
    assert provenance()["commit"] == git("rev-parse", "HEAD")
    (tmp_path / "src" / "new_method.py").touch()
    assert provenance()["commit"] == git("rev-parse", "HEAD") + "-modified"
    monkeypatch.setattr(run_log, "REPOSITORY", inside)  # which is no repository itself
    assert provenance()["commit"] is None


def test_names():
    seeds = {"0-4": [0, 1, 2, 3, 4], "0, 2": [0, 2], "0, 1, 5-7, 9": [0, 1, 5, 6, 7, 9]}
    assert [ranges(numbers) for numbers in seeds.values()] == list(seeds)
    assert [duration(seconds) for seconds in (119.4, 660, 5040)] == ["119 s", "11 min", "84 min"]
