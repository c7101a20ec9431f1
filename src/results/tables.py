"""Results as tables in Markdown: of one run, and of many over their seeds."""

import csv
import io
import sys
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from src import methods
from src.config.loading import METHODS
from src.results.runs import (
    Run,
    differing,
    errors_by_rule,
    experiment_values,
    grouped,
    one_a_seed,
    origins,
    percent_wrong,
)
from src.training.log import HEADLINES, headline

if TYPE_CHECKING:
    from src.results.statistics import Summary

IN_COLUMNS = ("name", "model.hidden_dims", "training.epochs", "data.validation_images")  # of their own in the table
# What tells rows of the same name apart, in this order, and in which words.
TOLD_APART_BY = {
    "method": "{}", "net": "{}", "epochs": "{} epochs", "images": "{:,} images", "precision": "{}",
}  # fmt: skip
BOTH = "goodness_and_one_pass"
RULES = HEADLINES | {BOTH: "by both rules"}
BY = {"goodness": "goodness", "one_pass": "a read-out"}


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def net_name(hidden_dims: list[int]) -> str:
    """[1000, 1000, 1000] -> "3 x 1000"; [500, 300] -> "500-300"."""
    alike = len(set(hidden_dims)) == 1
    return f"{len(hidden_dims)} x {hidden_dims[0]}" if alike else "-".join(map(str, hidden_dims))


# --- One run --------------------------------------------------------------------------------------------------------


def result_table(result: dict[str, Any]) -> str:
    """The closing table of one run: its test errors beside those published for its method, and its protocol.

    Published errors are of MNIST, so that they stand beside runs on MNIST alone.
    """
    percent = percent_wrong(result)
    errors = {rule: f"{error:.2f}" for rule, error in percent.items() if rule in HEADLINES}
    mnist = result["dataset"] == "mnist"
    name = f"this run ({result['name']}{'' if mnist else ', on ' + result['dataset']})"
    rows = [(name, net_name(result["hidden_dims"]), str(result["epochs"]), errors)]
    if mnist:
        published = methods.named(result["method"]).PUBLISHED
        rows += [(row.source, row.net, row.epochs, {row.rule: row.error}) for row in published]
    main = headline(percent)
    kinds = {f"{main}_layer_{layer}": f"layer {layer} alone" for layer in range(1, len(result["hidden_dims"]) + 1)}
    kinds |= {f"{main}_all_layers": "all layers", f"{main}_all_iterations": "all layers at all iterations"}
    of_layers = [f"{what} {percent[kind]:.2f}" for kind, what in kinds.items() if kind in percent]
    by_both = f"; {RULES[BOTH]} {percent[BOTH]:.2f}" if BOTH in percent else ""
    by_layer = f"Test error (%) by {BY[main]} of {', '.join(of_layers)}{by_both}.\n" if of_layers else ""
    first, *others = [HEADLINES[rule] for rule in errors]
    then = f" and {result['readout_epochs']} of the read-outs alone" if result["readout_epochs"] else ""
    table = markdown(
        ["", "net", "epochs", f"test error (%) {first}", *others],
        [[*row, *(of_row.get(rule, "-") for rule in errors)] for *row, of_row in rows],
    )
    return (
        f"\n{table}\n\n{by_layer}"
        f"Trained on {result['train_images']:,} images of {result['dataset']}, {result['epochs']} epoch(s){then}, "
        f"seed {result['seed']}, {result['precision']} on {result['device']} ({result['hardware']}): "
        f"{tqdm.format_interval(result['train_seconds'])} of training, {result['seconds_per_epoch']:.2f} s an epoch. "
        f"Tested once, on {result['test_images']:,} images.\n"
    )


def errors_table(outcome: dict[str, Any]) -> str:
    """Of a run that was tested again: wrongly classified test images by every rule, then and now."""
    now, then, images = outcome["test_errors"], outcome["test_errors_before"], outcome["test_images"]
    table = markdown(
        ["rule", "test error (%)", f"wrong of {images:,}", "in result.json"],
        [[rule, f"{100 * count / images:.2f}", str(count), str(then.get(rule, "-"))] for rule, count in now.items()],
    )
    return f"\n{table}\n"


# --- Runs over their seeds ------------------------------------------------------------------------------------------


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5, 6] -> "0-2, 5, 6"; `numbers` are in order."""
    parts = []
    for _, consecutive in groupby(enumerate(numbers), lambda item: item[1] - item[0]):
        row = [number for _, number in consecutive]
        parts += [f"{row[0]}-{row[-1]}"] if len(row) > 2 else map(str, row)
    return ", ".join(parts)


def published_for(experiment: str) -> methods.Published | None:
    """What was published of an experiment, if anything was."""
    every = (published for method in METHODS for published in methods.named(method).PUBLISHED)
    return next((published for published in every if published.experiment == experiment), None)


def rule_of(row: dict[str, Any]) -> str:
    """The rule of classification that a row of `rows_of` is judged by."""
    if row["published"]:
        return row["published"].rule
    return methods.OWN_RULE.get(row["run"]) or headline(row["errors"])


def summarise_runs(runs: list[Run]) -> dict[str, Any]:
    """A row of a table, unformatted: runs of one configuration and precision over its seeds.

    "changed" are the values that are not those of the experiment which the runs are named after or, without such an
    experiment, the defaults of their method. "cpu_seconds" and "gpu_seconds" are those of the shortest training on
    either, or None.
    """
    from src.results.statistics import summarise  # here, because a run's start need not wait for SciPy

    first, values = runs[0].result, runs[0].values
    of_experiment = experiment_values(first["name"])
    processors, threads = (
        sorted({used for run in runs for used in run.result[key]}) for key in ("processors", "threads")
    )
    on_cpu = [run.result["train_seconds"] for run in runs if run.result["device"] == "cpu"]
    on_gpu = [run.result["train_seconds"] for run in runs if run.result["device"] != "cpu"]
    with_threads = [f"{ranges(threads)} thread{'s' if threads != [1] else ''}"] if threads else []
    return {
        "run": first["name"], "method": first["method"], "net": net_name(first["hidden_dims"]),
        "epochs": first["epochs"], "images": first["train_images"],
        "changed": differing(values, of_experiment or {}, IN_COLUMNS),
        "seeds": [run.result["seed"] for run in runs],
        "errors": {rule: summarise(errors) for rule, errors in errors_by_rule(runs).items()},
        "as_experiment": values == of_experiment,
        "published": published_for(first["name"]) if values == of_experiment else None,
        "precision": first["precision"], "hardware": ", ".join(processors + with_threads),
        "cpu_seconds": min(on_cpu, default=None), "gpu_seconds": min(on_gpu, default=None),
    }  # fmt: skip


def rows_of(runs: list[Run]) -> list[dict[str, Any]]:
    """`summarise_runs` of each configuration and precision."""
    return [summarise_runs(one_a_seed(group)) for group in grouped(runs, "precision")]


def with_spread(summary: "Summary | None", *, std: bool = True, interval: bool = False) -> str:
    """ "1.42 ± 0.03 [1.35, 1.49]" of several values, with what is asked for; "1.42" of one, "-" of none."""
    if summary is None or summary.n == 1:
        return f"{summary.mean:.2f}" if summary else "-"
    deviation = f" ± {summary.std:.2f}" if std else ""
    limits = f" [{summary.low:.2f}, {summary.high:.2f}]" if interval else ""
    return f"{summary.mean:.2f}{deviation}{limits}"


def names_of(rows: list[dict[str, Any]]) -> list[str]:
    """What to call each row: its run, what is changed, and what else tells it apart from other rows of that name."""
    names = [", ".join(filter(None, [row["run"], row["changed"]])) for row in rows]
    for key, words in TOLD_APART_BY.items():
        pairs = [(name, words.format(row[key])) for name, row in zip(names, rows, strict=True)]
        kinds = Counter(name for name, _ in set(pairs))
        names = [f"{name}, {kind}" if kinds[name] > 1 else name for name, kind in pairs]
    return names


def table_of(rows: list[dict[str, Any]], header: list[str], cells: list[list[str]]) -> str:
    """A Markdown table of `rows`, a name and `cells` each, with this `header`; empty if there are none."""
    lines = [[name, *of_row] for name, of_row in zip(names_of(rows), cells, strict=True)]
    return markdown(["run", *header], lines) if lines else ""


def errors_over_seeds(rows: list[dict[str, Any]]) -> str:
    """The errors by both headline rules."""
    cells = []
    for row in rows:
        errors = [with_spread(row["errors"].get(rule)) for rule in HEADLINES]
        cells.append([row["net"], str(row["epochs"]), f"{row['images']:,}", ranges(row["seeds"]), *errors])
    return table_of(rows, ["net", "epochs", "images", "seeds", *(f"% {how}" for how in HEADLINES.values())], cells)


def errors_by_layer(rows: list[dict[str, Any]]) -> str:
    """The errors by single layers (four columns, or as many as there are) and by all, by a run's first rule."""
    rows = [row for row in rows if f"{headline(row['errors'])}_layer_1" in row["errors"]]
    numbers = [int(rule.rpartition("_")[2]) for row in rows for rule in row["errors"] if "_layer_" in rule]
    layers = range(1, max([4, *numbers]) + 1)
    cells = []
    for errors in (row["errors"] for row in rows):
        rule = headline(errors)
        of_all = errors.get(f"{rule}_all_layers") or errors.get(f"{rule}_all_iterations")
        summaries = [*(errors.get(f"{rule}_layer_{layer}") for layer in layers), of_all]
        cells.append([BY[rule], *map(with_spread, summaries)])
    return table_of(rows, ["by", *(f"layer {layer}" for layer in layers), "all"], cells)


def measured_on(rows: list[dict[str, Any]]) -> str:
    """What the runs were computed on, in which precision, and the 95 % interval of their mean error by `rule_of`."""
    cells = []
    for row in rows:
        error = with_spread(row["errors"].get(rule_of(row)), std=False, interval=True)
        cells.append([f"{row['hardware']}, {row['precision']}", RULES[rule_of(row)], error])
    return table_of(rows, ["hardware, precision", "rule", "% [95 % interval]"], cells)


def experiments_table(rows: list[dict[str, Any]], experiments: list[str]) -> str:
    """Every experiment, with what was published and what was reached with exactly its values; "-" where nothing was.

    Runs with another precision are further lines. The times are those of the shortest run on a CPU and on a GPU.
    """
    lines = []
    for name in experiments:
        published, section = published_for(name), methods.named(experiment_values(name)["method"]).SECTION
        of_paper = [section, f"{published.error} {HEADLINES[published.rule]}"] if published else ["-", "-"]
        reached = [row for row in rows if row["run"] == name and row["as_experiment"]]
        for row, its_name in zip(reached or [None], names_of(reached) or [name], strict=True):
            here = row["errors"].get(rule_of(row)) if row else None
            n = str(here.n) if here else "0"
            seconds = (row[key] if row else None for key in ("cpu_seconds", "gpu_seconds"))
            times = ["-" if shortest is None else duration(shortest) for shortest in seconds]
            lines.append([f"`{name}`{its_name.removeprefix(name)}", *of_paper, with_spread(here), n, *times])
    return markdown(["experiment", "section", "published", "here", "n", "CPU", "GPU"], lines)


def duration(seconds: float) -> str:
    """ "50 s", "11 min", "1.4 h": in the unit that reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summary_csv(rows: list[dict[str, Any]]) -> str:
    """`rows_of` as CSV: errors in percent, seeds with blanks between, empty where there is no value."""
    lines = []
    for row in rows:
        published = row["published"] and f"{row['published'].error} {HEADLINES[row['published'].rule]}"
        cells = row | {"seeds": " ".join(map(str, row["seeds"])), "published": published}
        for rule, summary in cells.pop("errors").items():
            cells |= {f"{rule}_{name}": value for name, value in summary._asdict().items()}
        lines.append(cells)
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(column for cells in lines for column in cells), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


# --- Two configurations ---------------------------------------------------------------------------------------------


def two_sides(runs: list[Run]) -> dict[str, list[Run]]:
    """{name: runs} of the two configurations of `runs`, named by the values in which they differ.

    Hardware and precision do not make another configuration. Runs of a single one are told apart by their precision.

    Raises:
        SystemExit: there are not two configurations, or one of them has a single seed.
    """
    by = () if any(run.values != runs[0].values for run in runs) else ("precision",)
    groups = grouped(runs, *by)
    if len(groups) != 2:
        found = "; ".join(
            f"{run.result['name']} ({differing(run.values, {}, ('name',)) or 'the defaults'}), as in {run.folder}"
            for run, *_ in groups
        )
        sys.exit(
            f"error: --compare takes two configurations, not {len(groups)}: {found}. "
            "Give the folders of the runs of two (both precisions of one will do as well)"
        )
    groups = [one_a_seed(group) for group in groups]
    values = [group[0].values | {key: group[0].result[key] for key in by} for group in groups]
    names = [differing(a, b, ("name",)) or differing(a, b) for a, b in (values, values[::-1])]
    for name, group in zip(names, groups, strict=True):
        if len(group) < 2:
            sys.exit(f"error: --compare takes two seeds or more of each configuration; there is one of '{name}'")
    return dict(zip(names, groups, strict=True))


def comparison(sides: dict[str, list[Run]], images: str = "test") -> str:
    """Welch's t-test between `two_sides`: a table, a sentence for each rule, and what they differ in beside it.

    `images`: which ones the errors are of.

    Raises:
        SystemExit: there is no rule of classification that both have.
    """
    from src.results.statistics import summarise, verdict, welch

    of_sides = {name: errors_by_rule(runs) for name, runs in sides.items()}
    if not any(all(rule in of_side for of_side in of_sides.values()) for rule in HEADLINES):
        found = " and ".join(f"'{name}' {HEADLINES[headline(of_side)]}" for name, of_side in of_sides.items())
        sys.exit(f"error: --compare needs a way to classify that both configurations have: {found} have none in common")
    rows, sentences = [], []
    for rule, what in RULES.items():
        samples = {name: of_side[rule] for name, of_side in of_sides.items() if rule in of_side}
        means = [with_spread(summarise(samples[name]) if name in samples else None, interval=True) for name in sides]
        tested = ["-"] * 4
        if len(samples) == 2:
            test = welch(*samples.values())
            sentences.append(f"{what}: {verdict(samples, test)}")
            if test:
                difference = f"{test.difference:.2f} [{test.low:.2f}, {test.high:.2f}]"
                tested = [difference, f"{test.t:.2f}", f"{test.df:.1f}", f"{test.p:.2g}"]
        if samples:
            rows.append([what, *means, *tested])
    for key in ("hardware", "precision"):
        used = {
            name: sorted({made[key] for run in runs for made in origins(run.result) if key in made})
            for name, runs in sides.items()
        }
        if len(set().union(*used.values())) > 1 and not any(f"{key}=" in name for name in sides):
            sentences.append(f"{key} differs: " + "; ".join(f"'{name}' {', '.join(v)}" for name, v in used.items()))
    header = [f"{images} error (%)", *sides, "first - second", "t", "degrees of freedom", "p"]
    return "\n".join([markdown(header, rows), "", *sentences])
