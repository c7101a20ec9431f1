"""Results as tables in Markdown: of one run, and of many over their seeds."""

import csv
import io
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from src import methods
from src.results.runs import (
    Run,
    differing,
    errors_by_rule,
    experiment_values,
    grouped,
    one_a_seed,
    percent_wrong,
    processor_and_threads,
    published_for,
)
from src.training.log import HEADLINES, clock, headline

if TYPE_CHECKING:
    from src.results.statistics import Summary

IN_COLUMNS = ("name", "model.hidden_dims", "training.epochs", "data.validation_images")  # of their own in the table
# What tells rows of the same name apart, in this order, and in which words.
TOLD_APART_BY = {
    "method": "{}", "net": "{}", "epochs": "{} epochs", "images": "{:,} images", "precision": "{}", "processor": "{}",
}  # fmt: skip
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
    if len(set(hidden_dims)) == 1:
        return f"{len(hidden_dims)} x {hidden_dims[0]}"
    return "-".join(map(str, hidden_dims))


# --- One run --------------------------------------------------------------------------------------------------------


def layers_line(result: dict[str, Any]) -> str:
    """A line on the errors by each layer alone and by all layers; empty where the method has no such rules."""
    errors = percent_wrong(result)
    rule = headline(errors)
    kinds = {f"{rule}_layer_{layer}": f"layer {layer} alone" for layer in range(1, len(result["hidden_dims"]) + 1)}
    kinds |= {f"{rule}_all_layers": "all layers", f"{rule}_all_iterations": "all layers at all iterations"}
    parts = [f"{what} {errors[kind]:.2f}" for kind, what in kinds.items() if kind in errors]
    return f"Test error (%) by {BY[rule]} of {', '.join(parts)}.\n" if parts else ""


def result_table(result: dict[str, Any]) -> str:
    """The closing table of one run: its test errors beside those published for its method, and its protocol.

    Published errors are of MNIST, so that they stand beside runs on MNIST alone.
    """
    errors = {rule: f"{error:.2f}" for rule, error in percent_wrong(result).items() if rule in HEADLINES}
    mnist = result["dataset"] == "mnist"
    name = f"this run ({result['name']}{'' if mnist else ', on ' + result['dataset']})"
    rows = [(name, net_name(result["hidden_dims"]), str(result["epochs"]), errors)]
    if mnist:
        published = methods.named(result["method"]).PUBLISHED
        rows += [(row.source, row.net, row.epochs, {row.rule: row.error}) for row in published]
    first, *others = [HEADLINES[rule] for rule in errors]
    then = f" and {result['readout_epochs']} of the read-outs alone" if result["readout_epochs"] else ""
    table = markdown(
        ["", "net", "epochs", f"test error (%) {first}", *others],
        [[*row, *(of_row.get(rule, "-") for rule in errors)] for *row, of_row in rows],
    )
    return (
        f"\n{table}\n\n"
        f"{layers_line(result)}"
        f"Trained on {result['train_images']:,} images of {result['dataset']}, {result['epochs']} epoch(s){then}, "
        f"seed {result['seed']}, {result['precision']} on {result['device']} ({result['hardware']}): "
        f"{clock(result['train_seconds'])} of training, {result['seconds_per_epoch']:.2f} s an epoch. "
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


def hardware_of(runs: list[Run]) -> str:
    """ "AMD EPYC, 1 thread"; "AMD EPYC, 1-3, 8 threads" where the runs on one processor had different numbers."""
    names = sorted({run.result["hardware"] for run in runs})
    if len(names) == 1:
        return names[0]
    threads = sorted(processor_and_threads(name)[1] for name in names)
    return f"{runs[0].result['processor']}, {ranges(threads)} threads"


def summarise_runs(runs: list[Run]) -> dict[str, Any]:
    """A row of a table, unformatted: runs of one configuration over its seeds.

    "changed" are the values that are not those of the experiment which the runs are named after or, without such an
    experiment, the defaults of their method. "seconds_per_epoch" is the median.
    """
    from src.results.statistics import summarise  # here, because a run's start need not wait for SciPy

    first, values = runs[0].result, runs[0].values
    of_experiment = experiment_values(first["name"])
    as_experiment = values == of_experiment
    return {
        "run": first["name"],
        "method": first["method"],
        "net": net_name(first["hidden_dims"]),
        "epochs": first["epochs"],
        "images": first["train_images"],
        "changed": differing(values, of_experiment or {}, IN_COLUMNS),
        "seeds": [run.result["seed"] for run in runs],
        "errors": {rule: summarise(errors) for rule, errors in errors_by_rule(runs).items()},
        "as_experiment": as_experiment,
        "published": published_for(first["name"]) if as_experiment else None,
        "precision": first["precision"],
        "processor": first["processor"],
        "hardware": hardware_of(runs),
        "seconds_per_epoch": median(run.result["seconds_per_epoch"] for run in runs),
    }


def rows_of(runs: list[Run]) -> list[dict[str, Any]]:
    """`summarise_runs` of each configuration, precision and processor."""
    return [summarise_runs(one_a_seed(group)) for group in grouped(runs, "precision", "processor")]


def mean_and_deviation(summary: "Summary | None") -> str:
    """ "1.42 ± 0.03" for several values, "1.42" for one, "-" for none."""
    if summary is None:
        return "-"
    return f"{summary.mean:.2f}" + (f" ± {summary.std:.2f}" if summary.n > 1 else "")


def with_interval(summary: "Summary | None") -> str:
    """ "1.42 ± 0.03 [1.35, 1.49]" for several values, "1.42" for one, "-" for none."""
    interval = f" [{summary.low:.2f}, {summary.high:.2f}]" if summary and summary.n > 1 else ""
    return mean_and_deviation(summary) + interval


def names_of(rows: list[dict[str, Any]]) -> list[str]:
    """What to call each row: its run, what is changed, and what else tells it apart from other rows of that name."""
    names = [", ".join(filter(None, [row["run"], row["changed"]])) for row in rows]
    for key, words in TOLD_APART_BY.items():
        found = defaultdict(set)
        for name, row in zip(names, rows, strict=True):
            found[name].add(row[key])
        names = [
            name + (f", {words.format(row[key])}" if len(found[name]) > 1 else "")
            for name, row in zip(names, rows, strict=True)
        ]
    return names


def formatted(rows: list[dict[str, Any]], cells_of: Callable[[dict[str, Any]], dict[str, str]]) -> str:
    """A Markdown table of `rows`, empty if there are none; `cells_of` makes the cells beside a row's name."""
    lines = [{"run": name} | cells_of(row) for name, row in zip(names_of(rows), rows, strict=True)]
    return markdown(list(lines[0]), [list(cells.values()) for cells in lines]) if lines else ""


def errors_over_seeds(rows: list[dict[str, Any]]) -> str:
    """The test errors by both headline rules."""
    return formatted(
        rows,
        lambda row: {
            "net": row["net"],
            "epochs": str(row["epochs"]),
            "images": f"{row['images']:,}",
            "seeds": ranges(row["seeds"]),
            "% by goodness": mean_and_deviation(row["errors"].get("goodness")),
            "% in one pass": mean_and_deviation(row["errors"].get("one_pass")),
        },
    )


def errors_by_layer(rows: list[dict[str, Any]]) -> str:
    """The test errors by single layers and by all of them, by the first rule that a run has."""

    def cells(row: dict[str, Any]) -> dict[str, str]:
        rule, errors = headline(row["errors"]), row["errors"]
        alone = {f"layer {layer}": errors.get(f"{rule}_layer_{layer}") for layer in range(1, 5)}
        of_all = errors.get(f"{rule}_all_layers") or errors.get(f"{rule}_all_iterations")
        summaries = alone | {"all": of_all}
        return {"by": BY[rule]} | {name: mean_and_deviation(summary) for name, summary in summaries.items()}

    return formatted([row for row in rows if f"{headline(row['errors'])}_layer_1" in row["errors"]], cells)


def measured_on(rows: list[dict[str, Any]]) -> str:
    """What the runs were computed on, and the 95 % interval of their mean error by the first rule that they have."""
    return formatted(
        rows,
        lambda row: {
            "precision": row["precision"],
            "hardware": row["hardware"],
            "rule": headline(row["errors"]).replace("_", " "),
            "% [95 % interval of the mean]": with_interval(row["errors"][headline(row["errors"])]),
        },
    )


def experiments_table(rows: list[dict[str, Any]], experiments: list[str], speed: dict[str, Any] | None = None) -> str:
    """Every experiment, with what was published and what was reached with exactly its values; "-" where nothing was.

    Runs with another precision or on another processor are further lines.

    Args:
        speed: a file of results/speed, for the time of a whole run on that machine with nothing beside it.
    """
    seconds = {row["experiment"]: row["run_seconds"] for row in (speed or {}).get("experiments", [])}
    lines = []
    for name in experiments:
        published, section = published_for(name), methods.named(experiment_values(name)["method"]).SECTION
        rule = published.rule if published else None
        of_paper = f"{published.error} {HEADLINES[rule]}" if published else "-"
        reached = [row for row in rows if row["run"] == name and row["as_experiment"]]
        for row, its_name in zip(reached or [None], names_of(reached) or [name], strict=True):
            of_row = row["errors"].get(rule or headline(row["errors"])) if row else None
            cells = {
                "experiment": f"`{name}`{its_name.removeprefix(name)}",
                "section": section if published else "-",
                "published": of_paper,
                "here": mean_and_deviation(of_row),
                "n": str(of_row.n) if of_row else "0",
                "time": duration(seconds[name]) if name in seconds else "-",
            }
            lines.append(list(cells.values()))
    return markdown(list(cells), lines)


def duration(seconds: float) -> str:
    """ "50 s", "11 min", "1.4 h": to two digits, for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summary_csv(rows: list[dict[str, Any]]) -> str:
    """`rows_of` as CSV: errors in percent, seeds with blanks between, empty where there is no value."""
    formatted_rows = []
    for row in rows:
        published = row["published"]
        cells = row | {"seeds": " ".join(map(str, row["seeds"]))}
        cells["published"] = published and f"{published.error} {HEADLINES[published.rule]}"
        for rule, summary in cells.pop("errors").items():
            cells |= {f"{rule}_{name}": value for name, value in summary._asdict().items()}
        formatted_rows.append(cells)
    text = io.StringIO()
    columns = dict.fromkeys(column for cells in formatted_rows for column in cells)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(formatted_rows)
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
            f"{group[0].result['name']} ({differing(group[0].values, {}, ('name',)) or 'the defaults'}), "
            f"as in {group[0].folder}"
            for group in groups
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


def comparison(sides: dict[str, list[Run]]) -> str:
    """Welch's t-test between `two_sides`: a table, a sentence for each rule, and what they differ in beside it.

    Raises:
        SystemExit: there is no rule of classification that both have.
    """
    from src.results.statistics import summarise, verdict, welch

    of_sides = {name: errors_by_rule(runs) for name, runs in sides.items()}
    if not any(all(rule in of_side for of_side in of_sides.values()) for rule in HEADLINES):
        found = " and ".join(f"'{name}' {HEADLINES[headline(of_side)]}" for name, of_side in of_sides.items())
        sys.exit(f"error: --compare needs a way to classify that both configurations have: {found} have none in common")
    rows, sentences = [], []
    for rule, what in HEADLINES.items():
        samples = {name: of_side[rule] for name, of_side in of_sides.items() if rule in of_side}
        means = [with_interval(summarise(samples[name])) if name in samples else "-" for name in sides]
        test = welch(*samples.values()) if len(samples) == 2 else None
        tested = ["-"] * 4
        if test:
            difference = f"{test.difference:.2f} [{test.low:.2f}, {test.high:.2f}]"
            tested = [difference, f"{test.t:.2f}", f"{test.df:.1f}", f"{test.p:.2g}"]
        if samples:
            rows.append([what, *means, *tested])
        if len(samples) == 2:
            sentences.append(f"{what}: {verdict(samples, test)}")
    for key in ("hardware", "precision"):
        if any(f"{key}=" in name for name in sides):
            continue
        used = {name: sorted({run.result[key] for run in runs}) for name, runs in sides.items()}
        if len(set().union(*used.values())) > 1:
            sentences.append(f"{key} differs: " + "; ".join(f"'{name}' {', '.join(v)}" for name, v in used.items()))
    header = ["test error (%)", *sides, "first - second", "t", "degrees of freedom", "p"]
    return "\n".join([markdown(header, rows), "", *sentences])
