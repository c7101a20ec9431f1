"""Tables and comparisons from files of runs, as the command line makes them."""

import csv
import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_config import composed

from src import report
from src.compare import summarise, welch
from src.config import UNUSED, Config
from src.data import SIDE, Examples
from src.experiment import build_model, train_model
from src.report import errors_table, net_name, ranges, result_table
from src.runlog import RunLog, clock, read_metrics, scalars
from src.runs import NOT_COMPARED, compared_values, flat, gather, grouped

REPOSITORY = Path(__file__).resolve().parents[1]
ERRORS = {  # by method and rule, in percent, for two hidden layers
    "supervised": {
        "goodness": 1.4, "one_pass": 1.5, "goodness_all_layers": 1.3, "goodness_layer_1": 1.9, "goodness_layer_2": 1.6,
    },
    "backprop": {"one_pass": 1.4},
    "unsupervised": {
        "one_pass": 1.7, "one_pass_all_layers": 1.8, "one_pass_layer_1": 2.9, "one_pass_layer_2": 2.1,
    },
    "recurrent": {
        "goodness": 1.6, "one_pass": 7.5, "goodness_all_iterations": 1.65, "goodness_layer_1": 1.95,
        "goodness_layer_2": 1.85,
    },
}  # fmt: skip
BEFORE_METHODS = ("method", "model__grids", "model__field", "unsupervised", "recurrent")  # keys that came with them


def write_run(
    folder: Path,
    seed: int,
    goodness: float,
    one_pass: float = 5.0,
    without: tuple[str, ...] = (),
    hardware: str = "a CPU",
    precision: str = "fp32",
    errors: dict[str, float] | None = None,
    **changed: Any,
) -> Path:
    """A finished run; `changed` and `without` name keys of its configuration, sections[key] as section__key.

    `errors`: by rule, instead of a supervised run's with `goodness` and `one_pass`.
    """
    config = yaml.safe_load((REPOSITORY / "configs" / "config.yaml").read_text())
    del config["defaults"], config["hydra"]
    for name, value in ({"seed": seed, "data__root": str(folder)} | changed).items():
        *section, key = name.split("__")
        (config.setdefault(section[0], {}) if section else config)[key] = value
    for name in without:
        *section, key = name.split("__")
        del (config[section[0]] if section else config)[key]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    errors = errors or {
        "goodness": goodness, "one_pass": one_pass, "goodness_layer_1": 9.0, "goodness_layer_2": 8.0,
        "goodness_all_layers": 7.0,
    }  # fmt: skip
    result = {
        "name": config["name"], "seed": seed, "hidden_dims": [30, 30], "epochs": 7, "train_images": 60000,
        "precision": precision, "hardware": hardware, "seconds_per_epoch": 2.0 + seed,
        **{f"test_error_{rule}": error for rule, error in errors.items()},
        **{key: config[key] for key in ("method",) if key in config},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_seeds(folder: Path, errors: list[float], one_pass: list[float] | None = None, **changed: Any) -> Path:
    for seed, error in enumerate(errors):
        write_run(folder / str(seed), seed, error, one_pass[seed] if one_pass else error, **changed)
    return folder


def write_method(folder: Path, method: str, seeds: int = 1, more: float = 0.0, **changed: Any) -> Path:
    """Finished runs with the errors of `method`, each seed's higher by 0.1 and all by `more`."""
    for seed in range(seeds):
        errors = {rule: error + 0.1 * seed + more for rule, error in ERRORS[method].items()}
        write_run(folder / str(seed), seed, 0.0, errors=errors, method=method, **({"name": method} | changed))
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `python -m src.report ARGUMENT...` in this process; returns its exit status, stdout and stderr."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
        capsys.readouterr()
        status, message = 0, ""
        try:
            report.main()
        except SystemExit as stop:
            status, message = 1, f"{stop.code}\n"
        out, err = capsys.readouterr()
        return status, out, err + message

    return run


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


# --- The table ------------------------------------------------------------------------------------------------------


def test_runs_that_differ_only_in_seed_and_folder_share_a_row(tmp_path, command):
    write_seeds(tmp_path / "a", [1.3, 1.4, 1.5, 1.6, 1.7], one_pass=[2.0, 2.0, 2.0, 2.0, 3.0])
    write_run(tmp_path / "b", 3, 3.0, training__learning_rate=0.02)
    status, out, err = command(tmp_path)
    assert (status, err) == (0, "")
    first, second = table_rows(out)
    # t of 97.5 % with 4 degrees of freedom is 2.776;
    # 2.776 * 0.15811 / sqrt(5) = 0.196, 2.776 * 0.44721 / sqrt(5) = 0.555
    assert first["goodness"] == "1.50 ± 0.16 [1.30, 1.70]"
    assert first["one pass"] == "2.20 ± 0.45 [1.64, 2.76]"
    assert (first["n"], first["seeds"], first["s / epoch"], first["images"]) == ("5", "0-4", "4.0", "60,000")
    assert (second["n"], second["seeds"], second["goodness"]) == ("1", "3", "3.00")
    assert (first["layer 1 alone"], second["all layers"]) == ("9.00 ± 0.00", "7.00")
    assert (first["changed"], second["changed"]) == ("", "learning_rate=0.02")
    assert (first["published"], second["published"]) == ("1.47 (goodness)", "-")  # the second is not what was published


def test_published_errors_are_of_the_experiment_with_its_values_on_any_images(tmp_path, command):
    write_run(tmp_path / "matlab", 0, 1.4, data__validation_images=0)
    dims = [2000] * 4
    write_run(tmp_path / "paper", 0, 1.4, name="paper", model__hidden_dims=dims, training__epochs=60)
    write_run(tmp_path / "paper_short", 0, 1.4, name="paper", model__hidden_dims=dims, training__epochs=6)
    write_run(tmp_path / "user", 0, 1.4, name="a name=of my, own")
    rows = table_rows(command(tmp_path)[1])
    assert [row["published"] for row in rows] == ["1.47 (goodness)", "1.36 (goodness)", "-", "-"]


def test_configurations_of_older_and_newer_versions_share_a_row(tmp_path, command):
    write_run(tmp_path / "0", 0, 1.4)
    write_run(tmp_path / "1", 1, 1.6, without=("training__step", "model__temperature", "data__jitter", *BEFORE_METHODS))
    write_run(tmp_path / "2", 2, 1.8, logging__tensorboard=True, evaluate="x", evaluation__every=0, device="cpu")
    (row,) = table_rows(command(tmp_path)[1])
    assert row["seeds"] == "0-2"
    assert "changed" not in row  # nothing would stand in that column
    write_run(tmp_path / "3", 3, 1.8, without=("training__epochs",), model__temperature=2.0)
    assert [row["seeds"] for row in table_rows(command(tmp_path)[1])] == ["0-2", "3"]


def test_changed_values_are_short_where_that_is_clear(tmp_path, command):
    write_run(
        tmp_path / "a", 0, 1.4, training__batch_size=50, training__negatives="uniform", model__peer_normalisation=6e-6,
        training__decay_in_momentum=True, model__hidden_dims=[20, 10], training__epochs=3, data__validation_images=0,
        model__of_the_future="x",
    )  # fmt: skip
    (row,) = table_rows(command(tmp_path)[1])
    assert row["changed"].split(", ") == [
        "peer_normalisation=6e-06", "training.batch_size=50", "decay_in_momentum=true", "negatives=uniform",
        "of_the_future=x",
    ]  # fmt: skip


def test_hardware_and_precision_make_rows(tmp_path, command):
    write_run(tmp_path / "0", 0, 1.4)
    write_run(tmp_path / "1", 1, 1.4, hardware="a GPU")
    write_run(tmp_path / "2", 2, 1.4, hardware="a GPU", precision="bf16")
    rows = table_rows(command(tmp_path)[1])
    assert [(row["seeds"], row["hardware"], row["precision"]) for row in rows] == [
        ("0", "a CPU", "fp32"),
        ("1", "a GPU", "fp32"),
        ("2", "a GPU", "bf16"),
    ]


def test_the_number_of_threads_makes_no_row(tmp_path, command):
    for seed, threads in enumerate((2, 1, 12)):
        write_run(tmp_path / str(seed), seed, 1.4, hardware=f"a CPU, {threads} thread{'s' if threads > 1 else ''}")
    write_run(tmp_path / "3", 0, 1.4, hardware="another CPU, 2 threads")
    rows = table_rows(command(tmp_path)[1])
    assert [(row["seeds"], row["hardware"], row["s / epoch"]) for row in rows] == [
        ("0-2", "a CPU, 1, 2, 12 threads", "3.0"),
        ("0", "another CPU, 2 threads", "2.0"),
    ]


def test_a_repeated_seed_counts_once_and_is_named(tmp_path, command):
    first, again = write_run(tmp_path / "a", 0, 1.4), write_run(tmp_path / "c", 0, 9.9)
    write_run(tmp_path / "b", 1, 1.6)
    status, out, err = command(tmp_path / "c", tmp_path)  # whatever the order, and c is there twice
    assert (status, err) == (0, f"not counted {again}: the same seed as {first}\n")
    (row,) = table_rows(out)
    assert (row["n"], row["goodness"]) == ("2", "1.50 ± 0.14 [0.23, 2.77]")  # 12.706 * 0.1


def test_folders_are_gathered_and_what_is_no_finished_run_is_named(tmp_path, command):
    sweep = tmp_path / "multirun" / "2030-01-01"
    write_run(sweep / "0_matlab_seed0", 0, 1.4)
    (sweep / "multirun.yaml").write_text("hydra: {}\n")
    (sweep / "0_matlab_seed0" / ".hydra").mkdir()
    (sweep / "0_matlab_seed0" / ".hydra" / "config.yaml").write_text("seed: 0\n")
    single = write_run(tmp_path / "outputs" / "a", 1, 1.4)
    bad = {name: write_run(sweep / name, 7, 1.4) for name in "abcdefghi"}
    bad["j"] = write_run(sweep / "j", 7, 1.4, errors={"goodness_layer_1": 1.4})
    bad["k"] = write_run(sweep / "k", 7, 1.4, method="telepathy")
    for name in "ab":
        (bad[name] / "result.json").unlink()
    (bad["b"] / "config.yaml").rename(bad["b"] / "metrics.jsonl")
    (bad["c"] / "config.yaml").unlink()
    (bad["d"] / "result.json").write_text('{"name": "matl')
    (bad["e"] / "result.json").write_text("[1, 2]")
    (bad["f"] / "result.json").write_text((bad["f"] / "result.json").read_text().replace("1.4", "NaN"))
    (bad["g"] / "config.yaml").write_text("")
    (bad["h"] / "config.yaml").write_text("name: [matlab\n")
    (bad["i"] / "config.yaml").write_text("{name: matlab, seed: 7, method: backprop}\n")
    status, out, err = command(tmp_path / "multirun", single)
    (row,) = table_rows(out)
    assert (status, row["seeds"]) == (0, "0, 1")
    reasons = dict(re.fullmatch(r"skipped (.*?): (.*)", line).groups() for line in err.splitlines())
    assert list(reasons) == [str(folder) for folder in bad.values()]
    words = [
        "not finished", "not finished", "no config.yaml", "result.json cannot be read", "not that of a run",
        "(no usable test_error_goodness)", "config.yaml is not that of its", "config.yaml cannot be read",
        "another name, method or seed", "(no usable test_error_goodness or test_error_one_pass)", "no method telepathy",
    ]  # fmt: skip
    for reason, word in zip(reasons.values(), words, strict=True):
        assert word in reason


def test_runs_of_every_method_stand_in_one_table(tmp_path, command):
    for method in ERRORS:
        write_method(tmp_path / method, method, seeds=2)
    status, out, err = command(tmp_path)
    assert (status, err) == (0, "")
    columns = ("run", "changed", "goodness", "one pass", "layer 1 alone", "all layers")
    assert [tuple(row[column] for column in columns) for row in table_rows(out)] == [
        ("`backprop`", "method=backprop", "-", "1.45 ± 0.07 [0.81, 2.09]", "-", "-"),
        ("`recurrent`", "method=recurrent", "1.65 ± 0.07 [1.01, 2.29]", "7.55 ± 0.07 [6.91, 8.19]", "2.00 ± 0.07", "-"),
        ("`supervised`", "", "1.45 ± 0.07 [0.81, 2.09]", "1.55 ± 0.07 [0.91, 2.19]", "1.95 ± 0.07", "1.35 ± 0.07"),
        ("`unsupervised`", "method=unsupervised", "-", "1.75 ± 0.07 [1.11, 2.39]", "2.95 ± 0.07", "1.85 ± 0.07"),
    ]  # fmt: skip


def test_published_errors_of_the_other_methods(tmp_path, command):
    dims = [2000] * 4
    rates = {f"training__{key}learning_rate": 1.0 for key in ("", "readout_")}
    decays = {f"training__{key}weight_decay": 0.0005 for key in ("", "readout_")}
    write_method(tmp_path / "a", "backprop", training__epochs=20, data__validation_images=0, **rates, **decays)
    write_method(tmp_path / "b", "unsupervised", model__hidden_dims=dims, training__negatives="uniform")
    local = {"name": "local_receptive_fields", "model__hidden_dims": [2048, 1980, 2048], "training__epochs": 60}
    write_method(tmp_path / "c", "unsupervised", model__grids=[4, 3, 2], **local)
    write_method(tmp_path / "d", "unsupervised", **local)
    write_method(tmp_path / "e", "recurrent", model__hidden_dims=[2000, 2000], training__epochs=60)
    write_method(tmp_path / "f", "supervised", name="recurrent", model__hidden_dims=[2000, 2000], training__epochs=60)
    write_method(tmp_path / "g", "unsupervised", model__hidden_dims=dims, unsupervised__readout_epochs=2)
    rows = table_rows(command(tmp_path)[1])
    assert [row["published"] for row in rows] == [
        "about 1.4 (one pass)", "1.37 (one pass)", "1.16 (one pass)", "-", "1.31 (goodness)", "-", "-",
    ]  # fmt: skip
    assert rows[2]["changed"] == "method=unsupervised, grids=[4,3,2]"
    columns = ("run", "rule", "published", "here", "all layers or iterations", "n")
    assert [tuple(row[name] for name in columns) for row in table_rows(command("--published", tmp_path)[1])] == [
        ("`backprop`", "one pass", "about 1.4", "1.40", "-", "1"),
        ("`unsupervised`", "one pass", "1.37", "1.70", "1.80", "1"),
        ("`local_receptive_fields`", "one pass", "1.16", "1.70", "1.80", "1"),
        ("`recurrent`", "goodness", "1.31", "1.60", "1.65", "1"),
    ]


def test_what_was_published_beside_what_was_reached_over_seeds(tmp_path, command):
    write_seeds(tmp_path / "a", [1.3, 1.4, 1.5], data__validation_images=0)
    write_run(tmp_path / "b", 3, 3.0, training__learning_rate=0.02)
    (row,) = table_rows(command("--published", tmp_path)[1])
    assert list(row.values()) == [
        "`matlab`", "2 x 30", "7", "60,000", "goodness", "1.47", "1.40 ± 0.10", "7.00 ± 0.00", "3",
    ]  # fmt: skip
    assert command("--published", tmp_path / "b") == (
        1, "", "error: none of these runs is an experiment with a published error, with that experiment's values\n",
    )  # fmt: skip


def test_the_squares_of_local_receptive_fields_count_only_where_there_are_any(tmp_path, command):
    write_method(tmp_path / "dense", "unsupervised", model__field=10)
    write_method(tmp_path / "dense_too", "unsupervised", model__field=14, training__negatives="uniform")
    write_method(tmp_path / "local", "unsupervised", model__grids=[4, 3], model__field=10)
    write_method(tmp_path / "local_too", "unsupervised", model__grids=[4, 3], model__field=13)
    rows = table_rows(command(tmp_path)[1])
    assert [row["changed"].removeprefix("method=unsupervised") for row in rows] == [
        "",
        ", grids=[4,3]",
        ", grids=[4,3], field=13",
    ]


@pytest.mark.parametrize("method", UNUSED)
def test_a_value_makes_no_other_row_just_where_the_trained_net_is_the_same(tmp_path, method):
    images = torch.randint(0, 256, (40, SIDE * SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    examples = Examples(images, torch.arange(40) % 10)
    config = composed(
        f"method={method}", "model.hidden_dims=[8,6]", "training.epochs=2", "training.batch_size=10", "device=cpu"
    )

    def trained(config: Config, folder: str) -> dict[str, torch.Tensor]:
        model = build_model(config, torch.float32)
        (tmp_path / folder).mkdir()
        train_model(config, model, examples, Examples(images[:0], examples.labels[:0]), tmp_path / folder, resume=False)
        return model.state_dict()

    def another(value: Any) -> Any:
        if isinstance(value, str):
            return {"fan_in": "fan_out", "hard": "uniform"}[value]
        if isinstance(value, bool):
            return not value
        if isinstance(value, list):
            return [*value[:-1], value[-1] + 1]
        return value + 1 if value >= 1 else value / 2

    values, reference = flat(dataclasses.asdict(config)), trained(config, "reference")
    compared = compared_values(values)
    sections = {"model", "training", "unsupervised", "recurrent"}
    for name in (name for name in values if name.partition(".")[0] in sections):
        section, key = name.split(".")
        if name in NOT_COMPARED or values[name] is None:
            continue
        changed = dataclasses.replace(getattr(config, section), **{key: another(values[name])})
        state = trained(dataclasses.replace(config, **{section: changed}), name)
        same = all(state[name].equal(reference[name]) for name in reference.keys() | state)
        assert same == (name not in compared), name


def test_the_kept_results_are_all_read(capsys):
    runs = gather([REPOSITORY / "results"])
    assert len(runs) == len(list((REPOSITORY / "results").rglob("result.json")))
    assert capsys.readouterr().err == ""
    folders = [{run.folder.parent.name for run in group} for group in grouped(runs, "precision", "processor")]
    assert all(len(names) == 1 for names in folders)  # a folder of seeds is one configuration, on one machine
    assert len(folders) == len(set.union(*folders))


def test_folders_without_results_are_one_line(tmp_path, command):
    assert command(tmp_path / "x") == (1, "", f"error: there is no folder {tmp_path / 'x'}\n")
    file = tmp_path / "file"
    file.touch()
    assert command(file) == (1, "", f"error: there is no folder {file}\n")


def test_the_command_fails_with_one_line_and_a_run_does_not_wait_for_scipy(tmp_path):
    code = (
        "import runpy, sys, src.report; assert 'scipy' not in sys.modules; del sys.modules['src.report']; "
        "runpy.run_module('src.report', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stderr == f"error: there is no finished run below {tmp_path}\n"
    assert done.returncode == 1


# --- CSV ------------------------------------------------------------------------------------------------------------


def test_csv_holds_the_figures_of_the_table_in_full(tmp_path, command):
    write_seeds(tmp_path / "runs" / "a", [1.31, 1.47, 1.52], one_pass=[1.3, 1.3, 1.6])
    write_run(tmp_path / "runs" / "b", 4, 3.0, training__negatives="uniform", training__momentum=0.5)
    file = tmp_path / "table.csv"
    assert command(tmp_path / "runs", "--csv", file)[:2] == command(tmp_path / "runs")[:2]
    with file.open(newline="", encoding="utf-8") as lines:
        first, second = csv.DictReader(lines)
    mean = 4.3 / 3
    std = math.sqrt(((1.31 - mean) ** 2 + (1.47 - mean) ** 2 + (1.52 - mean) ** 2) / 2)
    half = 4.302652729911275 * std / math.sqrt(3)  # t of 97.5 % with 2 degrees of freedom
    figures = [float(first[f"goodness_{name}"]) for name in ("n", "mean", "std", "low", "high")]
    assert figures == pytest.approx([3, mean, std, mean - half, mean + half], rel=1e-9)
    assert float(first["one_pass_mean"]) == pytest.approx(1.4)
    assert (first["seeds"], first["images"], first["published"]) == ("0 1 2", "60000", "1.47 (goodness)")
    assert second["changed"] == "momentum=0.5, negatives=uniform"
    assert [second[f"goodness_{name}"] for name in ("n", "mean", "std", "low", "high")] == ["1", "3.0", "", "", ""]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["table.csv"]


def test_csv_leaves_empty_what_a_method_does_not_have(tmp_path, command):
    for method in ERRORS:
        write_method(tmp_path / "runs" / method, method)
    file = tmp_path / "table.csv"
    assert command(tmp_path / "runs", "--csv", file)[0] == 0
    with file.open(newline="", encoding="utf-8") as lines:
        rows = {row["run"]: row for row in csv.DictReader(lines)}
    for method, errors in ERRORS.items():
        means = {column: value for column, value in rows[method].items() if column.endswith("_mean") and value}
        assert means == {f"{rule}_mean": str(error) for rule, error in errors.items()}


@pytest.mark.parametrize("name", ["missing/table.csv", "runs", "."])
def test_a_csv_that_cannot_be_written_is_one_line(tmp_path, command, monkeypatch, name):
    write_run(tmp_path / "runs", 0, 1.4)
    monkeypatch.chdir(tmp_path)
    status, _, err = command("runs", "--csv", name)
    assert status == 1
    assert re.fullmatch(f"error: {re.escape(name)} cannot be written: .+\n", err)


# --- Comparisons ----------------------------------------------------------------------------------------------------


def test_a_difference_is_told_with_its_interval_from_either_side(tmp_path, command):
    hard, uniform = [1.36, 1.41, 1.46, 1.51, 1.56], [1.55, 1.60, 1.65, 1.70, 1.75]
    write_seeds(tmp_path / "a", hard, one_pass=uniform)
    write_seeds(tmp_path / "b", uniform, one_pass=hard, training__negatives="uniform", name="u")
    status, out, err = command("--compare", tmp_path / "b", tmp_path / "a")
    assert (status, err) == (0, "")
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
    status, out, _ = command("--compare", tmp_path)
    assert status == 0
    sentence = "by goodness: no difference shown: 'training.batch_size=100' 1.50 and 'training.batch_size=50' 1.50 %, "
    _, _, _, _, _, goodness, _, *differing = out.splitlines()
    assert goodness.startswith(f"{sentence}difference 0.00 [-0.")
    assert goodness.endswith("p = 1 (Welch's t-test, n = 3 and 2)")
    assert differing == [
        "hardware differs: 'training.batch_size=100' a CPU, a GPU; 'training.batch_size=50' a CPU",
        "precision differs: 'training.batch_size=100' bf16, fp32; 'training.batch_size=50' fp32",
    ]


def test_one_configuration_is_compared_by_precision(tmp_path, command):
    write_seeds(tmp_path / "a", [1.4, 1.5, 1.6])
    write_seeds(tmp_path / "b", [2.4, 2.5, 2.6], precision="bf16")
    status, out, err = command("--compare", tmp_path)
    assert (status, err) == (0, "")
    assert "by goodness: 'precision=fp32' has the lower error: 1.50 against 2.50 %" in out
    assert "precision differs" not in out


def test_figures_without_any_spread_are_not_tested(tmp_path, command):
    write_seeds(tmp_path / "a", [1.46] * 3, one_pass=[1.5] * 3)
    write_seeds(tmp_path / "b", [1.46] * 2, one_pass=[1.7] * 2, training__momentum=0.5)
    status, out, err = command("--compare", tmp_path)
    assert (status, err) == (0, "")
    goodness, one_pass = out.splitlines()[-2:]
    assert goodness == "by goodness: no difference shown: 1.46 % with every seed of both (n = 3 and 2)"
    assert one_pass.startswith("in one pass: no test is possible: 'momentum=0.9' 1.50 and 'momentum=0.5' 1.70 % with")
    assert "nan" not in out and "inf" not in out


def test_methods_are_compared_by_the_rules_that_both_have(tmp_path, command):
    write_method(tmp_path / "a", "supervised", seeds=3, training__negatives="uniform")
    write_method(tmp_path / "b", "backprop", seeds=2)
    write_method(tmp_path / "c", "unsupervised", seeds=2, unsupervised__blurs=5)
    status, out, err = command("--compare", tmp_path / "a", tmp_path / "b")
    assert (status, err) == (0, "")
    goodness, one_pass = table_rows(out)
    ours, theirs = "method=supervised, negatives=uniform", "method=backprop"
    assert (goodness[ours], goodness[theirs], goodness["p"]) == ("1.50 ± 0.10 [1.25, 1.75]", "-", "-")
    assert one_pass["first - second"].startswith("0.15 [")
    (sentence,) = out.splitlines()[5:]
    assert sentence.startswith(f"in one pass: no difference shown: '{ours}' 1.60 and '{theirs}' 1.45 %")

    status, out, err = command("--compare", tmp_path / "b", tmp_path / "c")
    assert (status, err) == (0, "")
    (row,) = table_rows(out)
    assert row["test error (%)"] == "in one pass"
    assert row["method=unsupervised, blurs=5"] == "1.75 ± 0.07 [1.11, 2.39]"

    write_run(tmp_path / "d" / "0", 0, 0.0, errors={"goodness": 1.4}, training__momentum=0.5)
    write_run(tmp_path / "d" / "1", 1, 0.0, errors={"goodness": 1.5}, training__momentum=0.5)
    assert command("--compare", tmp_path / "b", tmp_path / "d") == (
        1,
        "",
        "error: --compare needs a way to classify that both configurations have: 'method=backprop, momentum=0.9' "
        "in one pass and 'method=supervised, momentum=0.5' by goodness have none in common\n",
    )


def test_comparisons_that_cannot_be_made_are_one_line(tmp_path, command):
    write_seeds(tmp_path / "a", [1.4, 1.5])
    status, out, err = command("--compare", tmp_path)
    assert (status, out) == (1, "")
    assert f"two configurations, not 1: matlab (the defaults), as in {tmp_path / 'a' / '0'}." in err

    write_run(tmp_path / "b", 4, 1.4, training__momentum=0.5)
    status, out, err = command("--compare", tmp_path)
    assert (status, out) == (1, "")
    assert err == ("error: --compare takes two seeds or more of each configuration; there is one of 'momentum=0.5'\n")

    write_run(tmp_path / "c", 4, 1.4, name="c", training__epochs=5)
    status, out, err = command("--compare", tmp_path)
    assert (status, out) == (1, "")
    assert err.startswith("error: --compare takes two configurations, not 3: ")
    assert err.count("\n") == 1
    assert f"; matlab (momentum=0.5), as in {tmp_path / 'b'}; c (epochs=5), as in {tmp_path / 'c'}. Give" in err


def test_welch_is_what_the_formulas_give():
    first, second = [1.40, 1.52, 1.45, 1.61], [1.72, 1.30, 1.95, 2.20, 1.50, 1.88]

    def mean_and_variance(values: list[float]) -> tuple[float, float]:
        mean = sum(values) / len(values)
        return mean, sum((value - mean) ** 2 for value in values) / (len(values) - 1)

    (mean_1, variance_1), (mean_2, variance_2) = mean_and_variance(first), mean_and_variance(second)
    a, b = variance_1 / 4, variance_2 / 6
    t, df = (mean_1 - mean_2) / math.sqrt(a + b), (a + b) ** 2 / (a**2 / 3 + b**2 / 5)
    test = welch(first, second)
    assert (test.difference, test.t, test.df) == pytest.approx((mean_1 - mean_2, t, df), rel=1e-9)
    assert test.p == pytest.approx(student_two_sided_p(abs(t), df), rel=1e-6)
    half = (test.high - test.low) / 2
    assert (test.low + test.high) / 2 == pytest.approx(test.difference)
    assert student_two_sided_p(half / math.sqrt(a + b), df) == pytest.approx(0.05, rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_one_sample_without_spread_is_tested_with_the_others():
    test = welch([1.46, 1.46, 1.46], [1.6, 1.7, 1.8])
    assert (test.t, test.df) == pytest.approx((-0.24 / math.sqrt(0.01 / 3), 2))


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (31, 2.042)])
def test_intervals_use_the_textbook_quantiles(n, quantile):
    summary = summarise([float(i) for i in range(n)])
    assert (summary.high - summary.mean) * math.sqrt(n) / summary.std == pytest.approx(quantile, abs=5e-4)
    assert summary.mean - summary.low == pytest.approx(summary.high - summary.mean)


# --- What a run prints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "header", "published", "layers"),
    [
        (
            "supervised", ["test error (%) by goodness", "in one pass"], [("1.36", "-"), ("1.47", "-"), ("-", "1.45")],
            "by goodness of layer 1 alone 1.90, layer 2 alone 1.60, all layers 1.30",
        ),
        ("backprop", ["test error (%) in one pass"], [("about 1.4",)], None),
        (
            "unsupervised", ["test error (%) in one pass"], [("1.37",), ("1.16",)],
            "by a read-out of layer 1 alone 2.90, layer 2 alone 2.10, all layers 1.80",
        ),
        (
            "recurrent", ["test error (%) by goodness", "in one pass"], [("1.31", "-")],
            "by goodness of layer 1 alone 1.95, layer 2 alone 1.85, all layers at all iterations 1.65",
        ),
    ],
)  # fmt: skip
def test_the_closing_table_is_that_of_the_method(method, header, published, layers):
    result = {
        "name": "mine", "method": method, "hidden_dims": [30, 30], "epochs": 7, "train_images": 60000, "seed": 3,
        "precision": "fp32", "device": "cpu", "hardware": "a CPU", "train_seconds": 70.0, "seconds_per_epoch": 10.0,
        "readout_epochs": 2 if method == "unsupervised" else 0, "test_images": 10000,
        **{f"test_error_{rule}": error for rule, error in ERRORS[method].items()},
        **{f"test_errors_{rule}": round(100 * error) for rule, error in ERRORS[method].items()},
    }  # fmt: skip
    text = result_table(result)
    ours, *others = table_rows(text)
    assert list(ours) == ["", "net", "epochs", *header]
    rules = [rule for rule in ("goodness", "one_pass") if rule in ERRORS[method]]
    assert list(ours.values()) == ["this run (mine)", "2 x 30", "7", *(f"{ERRORS[method][rule]:.2f}" for rule in rules)]
    assert [tuple(row[column] for column in header) for row in others] == published
    line, *protocol = text.rpartition("|")[2].strip().splitlines()
    if layers:
        assert line == f"Test error (%) {layers}."
    assert [line, *protocol][-1].startswith(
        "Trained on 60,000 images, 7 epoch(s)"
        + (" and 2 of the read-outs alone" if method == "unsupervised" else "")
        + ", seed 3, fp32 on cpu"
    )
    assert len(protocol) == bool(layers)


def test_a_net_tested_again_has_the_rules_of_its_method():
    now = {"one_pass": 170, "one_pass_all_layers": 180, "one_pass_layer_1": 290}
    text = errors_table({"test_images": 10000, "test_errors": now, "test_errors_before": {"one_pass": 171}})
    assert [tuple(row.values()) for row in table_rows(text)] == [
        ("one_pass", "1.70", "170", "171"),
        ("one_pass_all_layers", "1.80", "180", "-"),
        ("one_pass_layer_1", "2.90", "290", "-"),
    ]


def test_epochs_without_losses_of_layers_are_told_by_the_cross_entropy(tmp_path, caplog):
    caplog.set_level("INFO")
    none = torch.zeros(0)
    figures = {"loss": none, "pairs_ordered_wrongly": none, "readout_loss": torch.tensor(0.25)}
    with RunLog(tmp_path, 2) as run_log:
        run_log.epoch(1, 1.0, figures, {"one_pass": torch.tensor(3), "one_pass_layer_1": torch.tensor(4)}, 200)
        run_log.epoch(2, 0.5, figures, None, 200)
    assert [line.partition(", 0:")[0] for line in caplog.messages] == [
        "epoch 1/2  cross-entropy 0.25, val. error 1.50 %",
        "epoch 2/2  cross-entropy 0.25, val. error 1.50 %",
    ]
    assert [scalars(record) for record in read_metrics(tmp_path)] == [
        {
            "gain": 1.0,
            "loss/read-out": 0.25,
            "validation error (%)/one_pass": 1.5,
            "validation error (%)/one_pass_layer_1": 2.0,
        },
        {"gain": 0.5, "loss/read-out": 0.25},
    ]


# --- Names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "expected"), [([0, 1, 2, 3, 4], "0-4"), ([0, 2], "0, 2"), ([0, 1, 5, 6, 7, 9], "0, 1, 5-7, 9")]
)
def test_seeds_in_a_row_are_a_range(seeds, expected):
    assert ranges(seeds) == expected


def test_names():
    assert net_name([2000] * 4) == "4 x 2000"
    assert net_name([500, 300]) == "500-300"
    assert clock(59.6) == "1:00"
    assert clock(3 * 3600 + 61) == "3:01:01"
