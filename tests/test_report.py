"""Tables and comparisons from files of runs, as the command line makes them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import REPOSITORY
from omegaconf import OmegaConf

from src import report
from src.config.loading import composed
from src.results.runs import gather, rows_of
from src.results.tables import PUBLISHED, errors_table, result_table
from src.training import log as run_log
from src.training.log import HEADLINES, RunLog, provenance, read_json, scalars

LAYERS = {"goodness_layer_1": 9.0, "goodness_layer_2": 8.0, "goodness_all_layers": 7.0}
ERRORS = {  # by method and rule, in percent, for two hidden layers
    "supervised": dict(goodness=1.4, one_pass=1.5, goodness_all_layers=1.3, goodness_layer_1=1.9, goodness_layer_2=1.6)
    | {"goodness_and_one_pass": 1.2},
    "backprop": dict(one_pass=1.4),
    "unsupervised": dict(one_pass=1.7, one_pass_all_layers=1.8, one_pass_layer_1=2.9, one_pass_layer_2=2.1),
    "recurrent": dict(goodness=1.6, one_pass=7.5, goodness_layer_1=1.95, goodness_layer_2=1.85)
    | {"goodness_all_iterations": 1.65},
}


def write_run(folder: Path, seed: int, goodness: float, one_pass=5.0, without=(), **changed: Any) -> Path:
    """A finished run; `changed` and `without` name keys of its configuration, section.key as section__key; and
    `changed` its device, hardware, precision and, by rule, the errors that stand in for a supervised net's.
    """
    errors = changed.pop("errors", {"goodness": goodness, "one_pass": one_pass} | LAYERS)
    measured = {"device": "cpu", "hardware": "a CPU", "precision": "fp32"}
    measured = {key: changed.pop(key, value) for key, value in measured.items()}
    config = composed(f"method={changed.pop('method', 'supervised')}").copy()
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


def write_seeds(folder: Path, goodness: list[float], one_pass: list[float] | None = None, **changed: Any) -> Path:
    for seed, errors in enumerate(zip(goodness, one_pass or goodness, strict=True)):
        write_run(folder / str(seed), seed, *errors, **changed)
    return folder


def write_method(folder: Path, method: str, seeds: int = 1, **changed: Any) -> Path:
    """Finished runs with the errors of `method`, each seed's higher by 0.1."""
    for seed in range(seeds):
        errors = {rule: error + 0.1 * seed for rule, error in ERRORS[method].items()}
        write_run(folder / str(seed), seed, 0.0, errors=errors, method=method, **({"name": method} | changed))
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `python -m src.report ARGUMENT...` here; returns its output and error. `told`: on stderr, a pattern."""

    def run(*arguments: Any, told: str = "") -> str:
        monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
        error, _ = "", capsys.readouterr()
        try:
            report.main()
        except SystemExit as stop:
            error = stop.code
        out, err = capsys.readouterr()
        assert re.fullmatch(told, err)
        return out + error

    return run


def tables(text: str) -> list[list[dict[str, str]]]:
    """What `python -m src.report FOLDER` prints: errors over seeds, errors by layer, what the runs were measured on."""
    return [table_rows(table) for table in text.split("\n\n")]


def table_rows(text: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_runs_that_differ_only_in_seed_folder_and_what_older_versions_lack_share_a_row(tmp_path, command):
    write_seeds(tmp_path / "a", [1.3, 1.4], one_pass=[2.0] * 2, without=("model__goodness", "training__compile"))
    for seed, (goodness, one_pass) in enumerate([(1.5, 2), (1.6, 2), (1.7, 3)], 2):
        write_run(tmp_path / str(seed), seed, goodness, one_pass, logging__tensorboard=True, resume="x", device="cpu")
    write_run(tmp_path / "b", 3, 3.0, training__learning_rate=0.02)
    errors, by_layer, measured = tables(command(tmp_path))
    assert [list(row.values()) for row in errors] == [
        ["matlab", "2 x 30", "7", "60,000", "0-4", "1.50 ± 0.16", "2.20 ± 0.45"],
        ["matlab, learning_rate=0.02", "2 x 30", "7", "60,000", "3", "3.00", "5.00"],
    ]
    assert list(by_layer[0].values()) == ["matlab", "9.00 ± 0.00", "8.00 ± 0.00", "-", "-", "7.00 ± 0.00"]
    # t of 97.5 % with 4 degrees of freedom is 2.776; 2.776 * 0.15811 / sqrt(5) = 0.196
    assert list(measured[0].values()) == ["matlab", "a CPU, fp32", "by goodness", "1.50 [1.30, 1.70]"]
    assert list(measured[1].values()) == ["matlab, learning_rate=0.02", "a CPU, fp32", "by goodness", "3.00"]


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
        "matlab, dataset=kmnist, peer_normalisation=6e-06, batch_size=50, decay_in_momentum=true, "
        "negatives=uniform, of_the_future=x",
        "minute, learning_rate=0.03", "my, own, dataset=fashion_mnist, learning_rate=0.03", "my own, damping=0.2",
        "matlab, method=backprop",
    ]  # fmt: skip


def test_rows_of_one_name_are_told_apart_by_what_they_differ_in_and_hardware_makes_no_row(tmp_path, command):
    for seed, hardware in enumerate(("a CPU, 2 threads", "a CPU, 1 thread", "a CPU, 12 threads", "a GPU")):
        write_run(tmp_path / "0" / str(seed), seed, 1.4, hardware=hardware)
    write_run(tmp_path / "1", 2, 1.4, hardware="a GPU", precision="bf16")
    write_run(tmp_path / "2", 3, 1.4, name="mine", hardware="a GPU")
    write_method(tmp_path / "3", "recurrent", name="mine")
    write_run(tmp_path / "4", 3, 1.4, name="twice", data__validation_images=0)
    half = write_run(tmp_path / "5", 3, 1.4, name="twice", precision="bf16") / "result.json"
    half.write_text(half.read_text().replace("60000", "30000").replace("[30, 30]", "[30, 20]"))
    names = ["matlab, fp32", "matlab, bf16", "mine, supervised", "mine, recurrent", "twice, 2 x 30", "twice, 30-20"]
    for table in tables(command(tmp_path)):
        assert [row["run"] for row in table] == names
    assert [row["hardware, precision"] for row in table[:2]] == ["a CPU, a GPU, 1, 12, 2 threads, fp32", "a GPU, bf16"]
    (rows,) = tables(command("--published", tmp_path / "0", tmp_path / "1"))
    found = [(row["experiment"], row["n"]) for row in rows]
    assert found == [("`matlab`, fp32", "4"), ("`matlab`, bf16", "1")]


def test_a_repeated_seed_counts_once_and_is_named(tmp_path, command):
    first, again = write_run(tmp_path / "a", 0, 1.4), write_run(tmp_path / "c", 0, 9.9)
    write_run(tmp_path / "b", 1, 1.6)
    told = f"not counted {again}: the same seed as {first}\n"
    (row,) = tables(command(tmp_path / "c", tmp_path, told=told))[2]  # whatever the order, and c is there twice
    assert row["% [95 % interval]"] == "1.50 [0.23, 2.77]"  # 12.706 * 0.1


def test_folders_are_gathered_and_what_is_no_finished_run_is_named(tmp_path, capsys):
    sweep = tmp_path / "multirun" / "2030-01-01"
    hydras = write_run(sweep / "0_matlab_seed0", 0, 1.4) / ".hydra"
    hydras.mkdir()
    (hydras / "config.yaml").write_text("seed: 0\n")
    single = write_run(tmp_path / "outputs" / "a", 1, 1.4)
    damage = {  # file and what it holds instead; and the words for it
        ("result.json", None): "FileNotFoundError: ", ("result.json", '{"name": "matl'): "JSONDecodeError: ",
        ("result.json", '{"name": "matlab"}'): "LookupError: no error by goodness or in one pass",
        ("config.yaml", ""): "KeyError: 'method'", ("config.yaml", "name: [matlab\n"): "ParserError: ",
        ("config.yaml", "{method: backprop, dataset: fashion}"): "KeyError: 'fashion'",
        ("config.yaml", "{method: telepathy, dataset: mnist}"): "Could not find 'method/telepathy'",
    }  # fmt: skip
    for number, (name, content) in enumerate(damage):
        path = write_run(sweep / f"bad{number}", 7, 1.4) / name
        path.write_text(content) if content is not None else path.unlink()
    assert [run.result["seed"] for run in gather([tmp_path / "multirun", single])] == [0, 1]
    skipped = capsys.readouterr().err.splitlines()
    for number, (line, words) in enumerate(zip(skipped, damage.values(), strict=True)):
        assert line.startswith(f"skipped {sweep / f'bad{number}'}: no finished run (") and words in line


def test_links_to_runs_are_followed_and_each_run_is_read_once(tmp_path, capsys):
    sweep, links = write_seeds(tmp_path / "sweep", [1.3, 1.4]), tmp_path / "links"
    single = write_run(tmp_path / "single", 2, 1.5)
    links.mkdir()
    for name, target in {"a": single, "b": single, "sweep": sweep, "circle": links}.items():
        (links / name).symlink_to(target)
    assert [run.result["seed"] for run in gather([links, single])] == [2, 0, 1] and capsys.readouterr().err == ""


def test_every_experiment_stands_beside_what_was_published_with_runs_of_exactly_its_values(tmp_path, command):
    full = {"data__validation_images": 0}
    write_seeds(tmp_path / "a", [1.3, 1.4, 1.5])
    write_run(tmp_path / "b", 3, 3.0, training__learning_rate=0.02)
    write_run(tmp_path / "c", 4, 3.0, **full)  # other images than the Matlab code's
    write_method(tmp_path / "d", "recurrent", seeds=2, model__hidden_dims=[2000] * 2, training__epochs=60, **full)
    for seed, (device, error) in enumerate({"cpu": 0.6, "cuda": 0.7}.items()):  # judged by a rule of its own
        errors = {"goodness": 0.8, "one_pass": 0.9, "goodness_and_one_pass": error}
        own = {"model__loss": "symba", "model__temperature": 50.0, "training__adversarial": 0.5, "data__jitter": 2}
        own |= full | {"name": "record_jitter", "errors": errors, "training__epochs": 300, "device": device}
        write_run(tmp_path / "e" / str(seed), seed, 0.0, **own)
    of_paper, our_own = (
        {row["experiment"].strip("`"): list(row.values())[1:] for row in table}
        for table in tables(command("--published", tmp_path))
    )
    assert of_paper.keys() <= PUBLISHED.keys()
    assert of_paper | our_own == {
        "matlab": ["3.3", "1.47 by goodness", "1.40 ± 0.10", "3", "90 s", "-"],
        "record_jitter": ["3 x 1000", "300", "0.65 ± 0.07 by both rules", "2", "90 s", "100 s"],
        "recurrent": ["3.4", "1.31 by goodness", "1.65 ± 0.07", "2", "90 s", "-"],
    }
    *_, (own,) = tables(command(tmp_path / "e"))
    assert (own["rule"], own["% [95 % interval]"]) == ("by both rules", "0.65 [0.01, 1.29]")


def test_the_kept_results_are_all_read(capsys):
    runs = gather([REPOSITORY / "results"])
    assert len(runs) == len(list((REPOSITORY / "results").rglob("result.json")))
    assert capsys.readouterr().err == ""
    folders = [{run.folder.parent.name for run in row} for row in rows_of(runs)]
    assert all(len(names) == 1 for names in folders)  # a folder of seeds is one configuration and precision
    assert len(folders) == len(set.union(*folders))


def test_without_results_the_command_fails_with_one_line(tmp_path, command):
    assert command(tmp_path / "x") == f"error: there is no folder {tmp_path / 'x'}"
    assert command(tmp_path) == f"error: there is no finished run below {tmp_path}"


def test_validation_errors_are_those_of_the_last_epoch(tmp_path, command):
    def validated(seed: int, counts: list[int], folder: Path, **changed: Any) -> None:
        write_run(folder, seed, 5.0, **changed)
        errors = [{"goodness": count, "one_pass": 30, "goodness_layer_1": 60} for count in counts]
        records = [{"epoch": 1, "validation_errors": of_epoch, "validation_images": 2000} for of_epoch in errors]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    b = tmp_path / "b"
    for seed in (0, 1):
        validated(seed, [99, 20 + 4 * seed], tmp_path / "a" / str(seed))
        validated(seed, [40 + 4 * seed], b / str(seed), training__momentum=0.5)
    out = command("--validation", tmp_path)
    assert out.startswith("On the validation images:\n\n")
    _, errors, by_layer, measured = tables(out)
    assert [row["% by goodness"] for row in errors] == ["1.10 ± 0.14", "2.10 ± 0.14"]
    assert by_layer[0]["layer 1"] == "3.00 ± 0.00" and measured[0]["rule"] == "by goodness"
    assert table_rows(command("--compare", "--validation", tmp_path))[0]["validation error (%)"] == "by goodness"
    (b / "0" / "metrics.jsonl").unlink()
    (b / "1" / "metrics.jsonl").write_text('{"epoch": 1}\n')
    what = "no finished run with validation errors"
    reasons = (".*metrics.jsonl", "KeyError: 'validation_errors'")
    told = "".join(rf"skipped {b}/{n}: {what} \({reason}.*\n" for n, reason in enumerate(reasons))
    assert [row["seeds"] for row in tables(command("--validation", tmp_path, told=told))[1]] == ["0, 1"]
    assert command("--validation", b, told=told) == f"error: there is {what} below {b}"


def test_a_difference_is_told_with_its_interval_from_either_side(tmp_path, command):
    hard, uniform = [1.36, 1.41, 1.46, 1.51, 1.56], [1.55, 1.60, 1.65, 1.70, 1.75]
    write_seeds(tmp_path / "a", hard, one_pass=uniform)
    write_seeds(tmp_path / "b", uniform, one_pass=hard, training__negatives="uniform", hardware="a GPU, 2 threads")
    out = command("--compare", tmp_path / "b", tmp_path / "a")
    # Both variances are 0.00625: 8 degrees of freedom, standard error 0.05, t = 3.8, p = 0.0052, 97.5 % at 2.306.
    assert out.splitlines()[-4:] == [
        "by goodness: 'matlab' has the lower error (p = 0.0052)",
        "in one pass: 'matlab, negatives=uniform' has the lower error (p = 0.0052)",
        "by all layers: no test is possible, as the errors of one side do not vary over the seeds",
        "measured on: 'matlab' a CPU, fp32; 'matlab, negatives=uniform' a GPU, 2 threads, fp32",
    ]
    goodness, one_pass, _ = table_rows(out)
    assert (goodness["first - second"], one_pass["first - second"]) == ("-0.19 [-0.31, -0.07]", "0.19 [0.07, 0.31]")
    assert (goodness["t"], one_pass["t"], goodness["degrees of freedom"]) == ("-3.80", "3.80", "8.0")
    assert (goodness["p"], goodness["matlab (n = 5)"]) == ("0.0052", "1.46 ± 0.08 [1.36, 1.56]")


def test_precisions_are_compared_and_figures_without_any_spread_are_not_tested(tmp_path, command):
    write_seeds(tmp_path / "a", [1.46] * 3, one_pass=[1.4, 1.5, 1.6], evaluation__batch_size=7)
    write_seeds(tmp_path / "b", [1.46, 1.56], one_pass=[1.45, 1.55], precision="bf16")
    out = command("--compare", tmp_path)
    assert "by goodness: no test is possible, as the errors of one side do not vary over the seeds\n" in out
    assert "in one pass: no difference shown (p = 1)\n" in out
    assert out.endswith("measured on: 'matlab, fp32' a CPU, fp32; 'matlab, bf16' a CPU, bf16\n")
    assert [row["p"] for row in table_rows(out)] == ["-", "1", "-"]


def test_comparisons_are_by_the_rules_that_both_have_and_by_those_that_they_are_judged_by(tmp_path, command):
    a, b = write_seeds(tmp_path / "a", [1.4, 1.6]), write_method(tmp_path / "b", "backprop", seeds=2, name="theirs")
    assert len(tables(command(b))) == 2  # it has no layers of its own
    shared, own = table_rows(command("--compare", a, b))
    assert (shared["test error (%)"], shared["theirs (n = 2)"]) == ("in one pass", "1.45 ± 0.07 [0.81, 2.09]")
    assert (own["test error (%)"], own["matlab (n = 2)"]) == ("by goodness / in one pass", "1.50 ± 0.14 [0.23, 2.77]")
    assert own["theirs (n = 2)"] == shared["theirs (n = 2)"] and own["first - second"].startswith("0.05 [")
    c = write_seeds(tmp_path / "c", [1.4, 2.4], errors={"goodness": 1.4}, name="mine")
    (row,) = table_rows(command("--compare", c, b))
    assert row["test error (%)"] == "in one pass / by goodness"  # sorted by path
    e = write_seeds(tmp_path / "e", [1.4, 2.4], errors={"goodness": 1.4}, name="record_jitter")  # not by its own rule
    lost, words = command("--compare", e, b), "error: --compare needs a way to classify that both have: theirs and "
    assert lost.startswith(words + "record_jitter") and lost.endswith(" have none in common")
    error = "error: --compare takes the folders of two configurations, of two seeds or more each; there are: "
    found = f"'matlab', n = 2, as in {a / '0'}"
    assert command("--compare", a) == error + found
    d = write_run(tmp_path / "d", 4, 1.4, training__momentum=0.5)
    assert command("--compare", a, d) == f"{error}{found}; 'matlab, momentum=0.5', n = 1, as in {d}"


@pytest.mark.parametrize(
    ("method", "published", "layers"),
    [
        ("supervised", [("1.36", "-"), ("1.46", "-"), ("0.64", "-"), ("1.47", "-"), ("-", "1.45")],
         "goodness_all_layers 1.30, goodness_layer_1 1.90, goodness_layer_2 1.60, goodness_and_one_pass 1.20"),
        ("backprop", [("about 1.4",)], None),
        ("unsupervised", [("1.37",), ("1.16",)],
         "one_pass_all_layers 1.80, one_pass_layer_1 2.90, one_pass_layer_2 2.10"),
        ("recurrent", [("1.31", "-")],
         "goodness_layer_1 1.95, goodness_layer_2 1.85, goodness_all_iterations 1.65"),
    ],
)  # fmt: skip
def test_the_closing_table_is_that_of_the_method(tmp_path, method, published, layers):
    result = read_json(write_method(tmp_path, method) / "0" / "result.json")
    result |= {"name": "mine", "readout_epochs": 2 if method == "unsupervised" else 0, "test_images": 10000}
    text = result_table(result)
    ours, *others = table_rows(text)
    rules = [rule for rule in HEADLINES if rule in ERRORS[method]]
    header = [f"test error (%) {HEADLINES[rule]}" for rule in rules]
    assert list(ours) == ["", "net", "epochs", *header]
    assert list(ours.values()) == ["this run (mine)", "2 x 30", "7", *(f"{ERRORS[method][rule]:.2f}" for rule in rules)]
    assert [tuple(row[column] for column in header) for row in others] == published
    assert f"\n{f'Test error (%) by other rules: {layers}.' if layers else ''}\nTrained on" in text
    alone = " and 2 of the read-outs alone" if method == "unsupervised" else ""
    assert f"Trained on 60,000 images of mnist, 7 epoch(s){alone}, seed 0, fp32 on cpu" in text


def test_a_net_tested_again_has_the_rules_of_its_method():
    now = {"one_pass": 170, "one_pass_layer_1": 290}
    text = errors_table({"test_images": 10000, "test_errors": now, "test_errors_before": {"one_pass": 171}})
    rows = [("one_pass", "1.70", "170", "171"), ("one_pass_layer_1", "2.90", "290", "-")]
    assert [tuple(row.values()) for row in table_rows(text)] == rows


def test_epochs_without_losses_of_layers_are_told_by_the_cross_entropy(tmp_path, caplog):
    caplog.set_level("INFO")
    figures = {"gain": 1.0, "loss": [], "pairs_ordered_wrongly": [], "readout_loss": 0.25}
    validation = {"validation_images": 200, "validation_errors": {"one_pass": 3, "one_pass_layer_1": 4}}
    with RunLog(tmp_path, 2, classes=10) as run_log:
        run_log.epoch({"epoch": 1, **figures, **validation})
        run_log.epoch({"epoch": 2, **figures})
    told = [f"epoch {epoch}/2  cross-entropy 0.25, val. error 1.50 %" for epoch in (1, 2)]
    assert [line.partition(", 0:00:")[0] for line in caplog.messages] == told
    first, second = [scalars(record) for record in read_json(tmp_path / "metrics.jsonl")]
    assert second == {"gain": 1.0, "loss/read-out": 0.25}
    assert first == second | {"validation error (%)/one_pass": 1.5, "validation error (%)/one_pass_layer_1": 2.0}


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


def test_the_commit_is_marked_where_the_code_is_another(tmp_path, monkeypatch, caplog, request):
    request.addfinalizer(provenance.cache_clear)  # or later runs of this process would have what is found here

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.check_output(command, text=True).strip()

    def commit() -> str | None:
        provenance.cache_clear()
        return provenance()["commit"]

    inside = tmp_path / "copy"
    for folder in (tmp_path / "src", inside / "src"):
        folder.mkdir(parents=True)
    git("init")
    (tmp_path / "src" / "method.py").touch()
    git("add", "src")
    git("commit", "-m", "first")
    git("config", "status.showUntrackedFiles", "no")
    monkeypatch.setattr(run_log, "REPOSITORY", tmp_path)
    for of_no_use in ("notes.txt", "src/.DS_Store", "src/method.py~"):
        (tmp_path / of_no_use).touch()
    (tmp_path / "src" / "method.py").chmod(0o755)
    first = git("rev-parse", "HEAD")
    assert commit() == first
    (tmp_path / "src" / "new_method.py").touch()
    assert provenance()["commit"] == first  # what this process has imported
    monkeypatch.setenv("GIT_DIR", str(inside))  # as a hook does
    assert commit() == first + "-modified"
    monkeypatch.setattr(run_log, "REPOSITORY", inside)  # which is no repository itself
    assert commit() is None
    assert "the commit is not recorded: fatal: not a git repository" in caplog.text
