"""Results as tables: `python -m src.report results` makes the README's from every run below a folder.

`--published` makes a short one, beside what was published; `--csv FILE` writes full figures; `--compare` tests whether
two configurations differ in their errors.
"""

import argparse
import csv
import io
import sys
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from src.checkpoint import write_atomically
from src.runlog import HEADLINE_RULES, clock, headline
from src.runs import (
    Run,
    compared_values,
    composed_values,
    differing,
    differing_from_default,
    errors_by_rule,
    gather,
    grouped,
    one_a_seed,
    percent_wrong,
    processor_and_threads,
)

if TYPE_CHECKING:
    from src.compare import Summary

# What others published by each method, as (what, net, epochs, {rule: test error in percent}).
PUBLISHED = {
    "supervised": [
        ("Hinton's paper, section 3.3", "4 x 2000", "60", {"goodness": "1.36"}),
        ("Hinton's Matlab code", "3 x 1000", "100", {"goodness": "1.47"}),
        ("the reimplementation this one was modelled on", "3 x 1000", "100", {"one_pass": "1.45"}),
    ],
    "backprop": [("Hinton's paper, section 3.1", "a few layers", "about 20", {"one_pass": "about 1.4"})],
    "unsupervised": [
        ("Hinton's paper, section 3.2", "4 x 2000", "100", {"one_pass": "1.37"}),
        ("the same, local receptive fields", "2048-1980-2048", "60", {"one_pass": "1.16"}),
    ],
    "recurrent": [("Hinton's paper, section 3.4", "2 or 3 x 2000", "60", {"goodness": "1.31"})],
}
PUBLISHED_FOR = {  # experiment -> rule of classification and published test error in percent
    "matlab": ("goodness", "1.47"),
    "paper": ("goodness", "1.36"),
    "paper_fast": ("goodness", "1.46"),
    "paper_jitter": ("goodness", "0.64"),
    "seed_repo": ("one_pass", "1.45"),
    "backprop": ("one_pass", "about 1.4"),
    "unsupervised": ("one_pass", "1.37"),
    "local_receptive_fields": ("one_pass", "1.16"),
    "recurrent": ("goodness", "1.31"),
}
IN_COLUMNS = ("name", "model.hidden_dims", "training.epochs", "data.validation_images")  # of their own in the table


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


def layers_line(result: dict[str, Any]) -> str:
    """A line on the errors by each layer alone and by all layers; empty where the method has no such rules."""
    errors = percent_wrong(result)
    rule = headline(errors)
    kinds = {f"{rule}_layer_{layer}": f"layer {layer} alone" for layer in range(1, len(result["hidden_dims"]) + 1)}
    kinds |= {f"{rule}_all_layers": "all layers", f"{rule}_all_iterations": "all layers at all iterations"}
    parts = [f"{what} {errors[kind]:.2f}" for kind, what in kinds.items() if kind in errors]
    by = {"goodness": "goodness", "one_pass": "a read-out"}[rule]
    return f"Test error (%) by {by} of {', '.join(parts)}.\n" if parts else ""


def result_table(result: dict[str, Any]) -> str:
    """The closing table of one run: its test errors beside those published for its method, and its protocol."""
    errors = {rule: f"{error:.2f}" for rule, error in percent_wrong(result).items() if rule in HEADLINE_RULES}
    ours = (f"this run ({result['name']})", net_name(result["hidden_dims"]), str(result["epochs"]), errors)
    first, *others = [HEADLINE_RULES[rule] for rule in errors]
    then = f" and {result['readout_epochs']} of the read-outs alone" if result["readout_epochs"] else ""
    table = markdown(
        ["", "net", "epochs", f"test error (%) {first}", *others],
        [[*row, *(of_row.get(rule, "-") for rule in errors)] for *row, of_row in [ours, *PUBLISHED[result["method"]]]],
    )
    return (
        f"\n{table}\n\n"
        f"{layers_line(result)}"
        f"Trained on {result['train_images']:,} images, {result['epochs']} epoch(s){then}, seed {result['seed']}, "
        f"{result['precision']} on {result['device']} ({result['hardware']}): "
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


def published_error(values: dict[str, Any]) -> tuple[str, str] | None:
    """Rule and published error of the experiment that a run is named after, if it has that experiment's values.

    Which images it trains on is left open: publications differ in whether they held some back for validation.
    """
    name = values["name"]
    if name not in PUBLISHED_FOR:
        return None
    published = compared_values(composed_values(f"experiment={name}"))
    as_published = all(values.get(key) == published[key] for key in published.keys() - {"data.validation_images"})
    return PUBLISHED_FOR[name] if as_published else None


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
    """A row of the table, unformatted: runs of one configuration over its seeds."""
    from src.compare import summarise  # here, because a run's start need not wait for SciPy

    first = runs[0].result
    return {
        "run": first["name"],
        "net": net_name(first["hidden_dims"]),
        "epochs": first["epochs"],
        "images": first["train_images"],
        "changed": differing_from_default(runs[0].values, IN_COLUMNS),
        "seeds": [run.result["seed"] for run in runs],
        "errors": {rule: summarise(errors) for rule, errors in errors_by_rule(runs).items()},
        "published": published_error(runs[0].values),
        "precision": first["precision"],
        "hardware": hardware_of(runs),
        "seconds_per_epoch": mean(run.result["seconds_per_epoch"] for run in runs),
    }


def mean_and_deviation(summary: "Summary | None") -> str:
    """ "1.42 ± 0.03" for several values, "1.42" for one, "-" for none."""
    if summary is None:
        return "-"
    return f"{summary.mean:.2f}" + (f" ± {summary.std:.2f}" if summary.n > 1 else "")


def with_interval(summary: "Summary | None") -> str:
    """ "1.42 ± 0.03 [1.35, 1.49]" for several values, "1.42" for one, "-" for none."""
    interval = f" [{summary.low:.2f}, {summary.high:.2f}]" if summary and summary.n > 1 else ""
    return mean_and_deviation(summary) + interval


def published_text(row: dict[str, Any]) -> str:
    """ "1.47 (goodness)", or "-" for none."""
    if row["published"] is None:
        return "-"
    rule, error = row["published"]
    return f"{error} ({rule.replace('_', ' ')})"


def published_table(rows: list[dict[str, Any]]) -> str:
    """The rows of `summarise_runs` for which there is a published error, and what was reached by the same rule.

    Raises:
        SystemExit: there are none.
    """
    rows = [row for row in rows if row["published"]]
    if not rows:
        sys.exit("error: none of these runs is an experiment with a published error, with that experiment's values")

    formatted = []
    for row in rows:
        (rule, error), errors = row["published"], row["errors"]
        of_all = errors.get(f"{rule}_all_layers") or errors.get(f"{rule}_all_iterations")
        formatted.append(
            {
                "run": f"`{row['run']}`",
                "net": row["net"],
                "epochs": str(row["epochs"]),
                "images": f"{row['images']:,}",
                "rule": rule.replace("_", " "),
                "published": error,
                "here": mean_and_deviation(errors.get(rule)),
                "all layers or iterations": mean_and_deviation(of_all),
                "n": str(len(row["seeds"])),
            }
        )
    return markdown(list(formatted[0]), [list(cells.values()) for cells in formatted])


def summary_table(rows: list[dict[str, Any]]) -> str:
    """`summarise_runs` as Markdown; the column of changed values only where there are any.

    Layer 1 alone and all layers classify by the run's `headline` rule.
    """
    formatted = [
        {
            "run": f"`{row['run']}`",
            "net": row["net"],
            "epochs": str(row["epochs"]),
            "images": f"{row['images']:,}",
            "changed": row["changed"],
            "n": str(len(row["seeds"])),
            "seeds": ranges(row["seeds"]),
            "goodness": with_interval(row["errors"].get("goodness")),
            "one pass": with_interval(row["errors"].get("one_pass")),
            "published": published_text(row),
            "layer 1 alone": mean_and_deviation(row["errors"].get(f"{headline(row['errors'])}_layer_1")),
            "all layers": mean_and_deviation(row["errors"].get(f"{headline(row['errors'])}_all_layers")),
            "precision": row["precision"],
            "hardware": row["hardware"],
            "s / epoch": f"{row['seconds_per_epoch']:.1f}",
        }
        for row in rows
    ]
    header = [name for name in formatted[0] if name != "changed" or any(row["changed"] for row in formatted)]
    return markdown(header, [[row[name] for name in header] for row in formatted])


def summary_csv(rows: list[dict[str, Any]]) -> str:
    """`summarise_runs` as CSV: errors in percent, seeds with blanks between, empty where there is no value."""
    formatted = []
    for row in rows:
        published = published_text(row) if row["published"] else None
        cells = row | {"seeds": " ".join(map(str, row["seeds"])), "published": published}
        for rule, summary in cells.pop("errors").items():
            cells |= {f"{rule}_{name}": value for name, value in summary._asdict().items()}
        formatted.append(cells)
    text = io.StringIO()
    columns = dict.fromkeys(column for cells in formatted for column in cells)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(formatted)
    return text.getvalue()


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
            f"{group[0].result['name']} ({differing_from_default(group[0].values, ('name',)) or 'the defaults'}), "
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
    from src.compare import summarise, verdict, welch

    of_sides = {name: errors_by_rule(runs) for name, runs in sides.items()}
    if not any(all(rule in of_side for of_side in of_sides.values()) for rule in HEADLINE_RULES):
        found = " and ".join(f"'{name}' {HEADLINE_RULES[headline(of_side)]}" for name, of_side in of_sides.items())
        sys.exit(f"error: --compare needs a way to classify that both configurations have: {found} have none in common")
    rows, sentences = [], []
    for rule, what in HEADLINE_RULES.items():
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Test errors (%) of the runs in or below folders, over their seeds.")
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("results")], metavar="FOLDER")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", type=Path, metavar="FILE", help="write the table there too, with full figures")
    output.add_argument("--published", action="store_true", help="what was reached beside what was published")
    output.add_argument("--compare", action="store_true", help="test two configurations for a difference (Welch)")
    arguments = parser.parse_args()
    runs = gather(arguments.folders)
    if arguments.compare:
        print(comparison(two_sides(runs)))
        return
    rows = [summarise_runs(one_a_seed(group)) for group in grouped(runs, "precision", "processor")]
    print(published_table(rows) if arguments.published else summary_table(rows))
    if arguments.csv:
        try:
            write_atomically(arguments.csv, summary_csv(rows).encode())
        except (OSError, ValueError) as error:  # ValueError: "." and "/" are not names of files
            reason = error.strerror if isinstance(error, OSError) else error
            sys.exit(f"error: {arguments.csv} cannot be written: {reason}")


if __name__ == "__main__":
    main()
