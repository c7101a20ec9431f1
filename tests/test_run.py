"""Real runs of the real command line on real MNIST, with small nets."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from commands import ONE_THREAD, REPOSITORY, command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_config import EXPERIMENTS, composed

from src.config import ConfigError, load_saved
from src.config import composed as values_of
from src.data import load_mnist
from src.evaluate import count_errors, scores_for
from src.experiment import build_model, evaluate
from src.runlog import read_metrics, read_result

PICTURES = ["learning_curve.png", "receptive_fields.png", "confusion.png", "most_wrong.png", "goodness.png"]
SMALL = [  # widths that the grids of local receptive fields can share out
    "model.hidden_dims=[32,18,8]", "training.epochs=1", "unsupervised.readout_epochs=1", "data.validation_images=59000",
    "evaluation.every=0", "logging.pictures=false",
]  # fmt: skip


def test_a_run_learns(learned):
    result = json.loads((learned[0] / "result.json").read_text())
    assert result["test_error_goodness"] < 16
    assert result["test_error_one_pass"] < 13
    losses = [json.loads(line)["loss"] for line in (learned[0] / "metrics.jsonl").read_text().splitlines()]
    assert all(last < first for first, last in zip(losses[0], losses[-1], strict=True))


def test_a_run_leaves_its_result_with_protocol(learned):
    result = json.loads((learned[0] / "result.json").read_text())
    for rule in ["goodness", "one_pass", "goodness_all_layers", *(f"goodness_layer_{layer}" for layer in (1, 2, 3))]:
        assert result[f"test_error_{rule}"] == result[f"test_errors_{rule}"] / 100
    assert (result["test_images"], result["train_images"], result["epochs"], result["seed"]) == (10000, 10000, 4, 3)
    assert result["train_seconds"] == pytest.approx(4 * result["seconds_per_epoch"])
    assert (result["device"], result["precision"]) == ("cpu", "fp32")
    assert result["versions"]["torch"] == torch.__version__


def test_a_run_leaves_metrics_configuration_and_picture(learned):
    records = [json.loads(line) for line in (learned[0] / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["gain"] for record in records] == [1, 1, 0.75, 0.25]
    assert ["validation_errors" in record for record in records] == [False, True, False, True]
    config = yaml.safe_load((learned[0] / "config.yaml").read_text())
    assert config["model"]["hidden_dims"] == [100, 100, 100]
    assert config["training"]["negatives"] == "hard"
    for picture in PICTURES:
        assert (learned[0] / picture).read_bytes().startswith(b"\x89PNG")


def test_tensorboard_reads_the_figures_of_metrics_jsonl(learned):
    events = EventAccumulator(str(learned[0] / "tensorboard"))
    events.Reload()
    records = read_metrics(learned[0])

    def series(name: str) -> dict[int, float]:
        return {event.step: event.value for event in events.Scalars(name)}

    for layer in (1, 2, 3):
        losses = {record["epoch"]: pytest.approx(record["loss"][layer - 1]) for record in records}
        shares = {
            record["epoch"]: pytest.approx(100 * record["pairs_ordered_wrongly"][layer - 1]) for record in records
        }
        assert series(f"loss/layer {layer}") == losses
        assert series(f"pairs ordered wrongly (%)/layer {layer}") == shares
    assert series("loss/read-out") == {record["epoch"]: pytest.approx(record["readout_loss"]) for record in records}
    for rule in ("goodness", "one_pass"):
        errors = {
            record["epoch"]: pytest.approx(100 * record["validation_errors"][rule] / 50000)
            for record in records
            if "validation_errors" in record
        }
        assert list(errors) == [2, 4] and series(f"validation error (%)/{rule}") == errors


def test_a_saved_run_is_tested_again(learned, mnist_root):
    """To the last image, and without a trace but in its log."""
    result = read_result(learned[0])
    before = {path: path.read_bytes() for path in learned[0].rglob("*") if path.is_file() and path.name != "main.log"}
    done = command(f"evaluate={learned[0]}", f"data.root={mnist_root}")
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[3:]]
    assert [row[0] for row in rows if row[0]] == [key[12:] for key in result if key.startswith("test_errors_")]
    for rule, percent, count, count_before in (row for row in rows if row[0]):
        assert count == count_before == str(result[f"test_errors_{rule}"])
        assert percent == f"{result[f'test_error_{rule}']:.2f}"
    assert before == {path: path.read_bytes() for path in before}
    assert {path for path in learned[0].rglob("*") if path.is_file() and path.name != "main.log"} == set(before)


def unfinish(folder: Path) -> None:
    for name in ("model.pt", "result.json"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (unfinish, "this run is not finished (no model.pt); go on with resume="),
        (lambda folder: (folder / "model.pt").unlink(), "this run's net was not kept (no model.pt)"),
        (lambda folder: (folder / "model.pt").write_bytes(b"PK"), "model.pt is damaged or not ours"),
        (lambda folder: (folder / "result.json").write_text("{"), "result.json is damaged (Expecting property name"),
        (lambda folder: (folder / "config.yaml").unlink(), "there is no run (no config.yaml)"),
    ],
    ids=["not finished", "net not kept", "damaged", "result damaged", "no run"],
)
def test_what_cannot_be_tested_again_is_said(learned, tmp_path, change, expected):
    for name in ("config.yaml", "model.pt", "result.json"):
        shutil.copy(learned[0] / name, tmp_path / name)
    change(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(expected)):
        evaluate(load_saved(tmp_path, values_of()), tmp_path)


def test_what_may_differ_when_a_run_is_tested_again(learned):
    overrides = [f"evaluate={learned[0]}", "data.root=elsewhere", "precision=bf16"]
    config = load_saved(learned[0], values_of(*overrides), "evaluate", overrides)
    assert (config.data.root, config.precision, config.model.hidden_dims) == ("elsewhere", "bf16", [100, 100, 100])
    with pytest.raises(ConfigError, match=r"model\.threshold=2: could change"):
        load_saved(learned[0], values_of(*overrides), "evaluate", [*overrides, "model.threshold=2"])


def test_pictures_are_drawn_again(learned, mnist_root, tmp_path):
    for name in ("config.yaml", "metrics.jsonl", "model.pt", "result.json"):
        shutil.copy(learned[0] / name, tmp_path / name)
    done = command(str(tmp_path), "--data-root", str(mnist_root), module="src.plots", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / picture) for picture in PICTURES]
    for picture in PICTURES:
        assert (tmp_path / picture).read_bytes() == (learned[0] / picture).read_bytes()
    (tmp_path / "model.pt").unlink()
    (tmp_path / "result.json").unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "lo')  # killed while it wrote
    for picture in PICTURES:
        (tmp_path / picture).unlink()
    done = command(str(tmp_path), module="src.plots")
    assert done.returncode == 0 and "it is not finished" in done.stdout
    assert [path.name for path in tmp_path.glob("*.png")] == ["learning_curve.png"]
    done = command(str(tmp_path / "elsewhere"), module="src.plots")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path / 'elsewhere'}: there is no run (no config.yaml)\n"


def test_the_saved_model_makes_the_reported_errors(learned, mnist_root):
    result = json.loads((learned[0] / "result.json").read_text())
    model = build_model(composed("model.hidden_dims=[100,100,100]"), torch.float32)
    model.load_state_dict(torch.load(learned[0] / "model.pt", weights_only=True))
    _, _, test = load_mnist(root=mnist_root, device="cpu", validation_images=0)
    for batch_size in (1000, 3333):  # every image counts, also those of a last, smaller batch
        for rule, count in count_errors(scores_for(model, test.images, batch_size), test.labels).items():
            # Other sums inside the matrix products may settle a near tie differently.
            assert abs(int(count) - result[f"test_errors_{rule}"]) <= 3


def test_a_run_prints_progress_and_the_published_results(learned):
    lines = learned[1].splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 4
    for expected in ("this run (matlab)", "1.36", "1.47", "1.45", "seed 3", "layer 1 alone", "Tested once"):
        assert any(expected in line for line in lines)


def sweep(folder: Path, *overrides: str) -> list[dict]:
    """The results of a multirun: several jobs in one process, one after another."""
    done = command("-m", f"hydra.sweep.dir={folder}", *overrides)
    assert done.returncode == 0, done.stderr
    jobs = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: int(path.name.split("_")[0]))
    return [json.loads((job / "result.json").read_text()) for job in jobs]


def test_every_experiment_runs(tmp_path, mnist_root):
    results = sweep(tmp_path, f"experiment={','.join(EXPERIMENTS)}", f"data.root={mnist_root}", *SMALL)
    assert [result["name"] for result in results] == EXPERIMENTS
    assert [result["method"] for result in results] == [composed(f"experiment={name}").method for name in EXPERIMENTS]
    for result in results:
        protocol = (result["test_images"], result["train_images"], result["epochs"], result["hidden_dims"])
        assert protocol == (10000, 1000, 1, [32, 18, 8])
        errors = [result[key] for key in result if key.startswith("test_errors_")]
        assert errors and all(0 < count < 10000 for count in errors)


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path, mnist_root):
    results = sweep(tmp_path, "seed=0,1,0", f"data.root={mnist_root}", *SMALL)
    first_errors, other_errors, again_errors = (
        {key: value for key, value in result.items() if key.startswith("test_error")} for result in results
    )
    assert first_errors == again_errors != other_errors
    first, other, again = (torch.load(next(tmp_path.glob(f"{job}_*")) / "model.pt", weights_only=True) for job in "012")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def one_line(*arguments: str, **options: str) -> str:
    """What a command that fails says, which is one line."""
    done = command(*arguments, **options)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_bad_input_is_one_line_before_any_data_is_loaded(tmp_path):
    folders = f"data.root={tmp_path / 'data'}", f"hydra.run.dir={tmp_path / 'run'}"
    with ThreadPoolExecutor() as pool:  # most of it is the processes' start
        overrides = ["training.epochz=1", "training.batch_size=0", "experiment=papier"]
        for override, line in zip(overrides, pool.map(partial(one_line, *folders), overrides), strict=True):
            assert line.startswith("error: "), override
    assert not (tmp_path / "data").exists()


def test_other_bad_input_is_one_line(tmp_path):
    kept = str(REPOSITORY / "results" / "fast" / "seed0")
    assert one_line("resume=") == "error: resume=: names no run's folder\n"
    assert one_line("model.hidden_dims=[1000000000,1000000000]", f"hydra.run.dir={tmp_path / 'run'}") == (
        "error: out of memory; smaller model.hidden_dims, training.batch_size or evaluation.batch_size may help\n"
    )
    assert one_line(kept, module="src.plots") == (
        f"error: {kept}: of this run there is nothing to draw (its net was not kept)\n"
    )


def test_a_requeued_job_whose_run_is_finished_says_its_result(tmp_path, learned):
    folder = Path(shutil.copytree(learned[0], tmp_path / "run"))
    before = (folder / "result.json").read_bytes()
    done = command(f"hydra.run.dir={folder}", SLURM_RESTART_COUNT="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "this run (matlab)" in done.stdout and "Tested once" in done.stdout
    assert (folder / "result.json").read_bytes() == before


def test_a_folder_that_holds_a_run_is_left_alone(learned, mnist_root):
    before = {path: path.read_bytes() for path in learned[0].iterdir() if path.is_file() and path.name != "main.log"}
    line = one_line(f"data.root={mnist_root}", f"hydra.run.dir={learned[0]}", *SMALL)
    assert line == f"error: {learned[0]} already holds a run; choose another hydra.run.dir, or resume={learned[0]}\n"
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_read_only_disk_is_one_line(tmp_path, mnist_root):
    if subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    for override, expected in (
        (f"hydra.run.dir={tmp_path}/run", "error: [Errno 30] Read-only file system: "),
        (f"data.root={tmp_path}/data", "error: cannot write MNIST to "),
    ):
        main = [sys.executable, "-m", "main", f"data.root={mnist_root}", *SMALL, override]
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o ro none {tmp_path} && exec "$@"', "sh", *main],
            cwd=REPOSITORY, env=ONE_THREAD, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith(expected) and len(done.stderr.splitlines()) == 1


def test_a_damaged_data_file_is_one_line_and_nothing_is_trained(tmp_path, mnist_root):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (mnist_root / "MNIST" / "raw").glob("*-ubyte"):
        (raw / file.name).write_bytes(file.read_bytes())
    labels = raw / "train-labels-idx1-ubyte"
    damaged = bytearray(labels.read_bytes())
    damaged[100] ^= 1
    labels.write_bytes(damaged)
    line = one_line(f"data.root={tmp_path / 'data'}", f"hydra.run.dir={tmp_path / 'run'}", *SMALL)
    assert "train-labels-idx1-ubyte" in line
    assert labels.read_bytes() == damaged
    assert not (tmp_path / "run" / "model.pt").exists()
