"""Results as tables in Markdown: of one run, and of many over their seeds, in the rows that `rows_of` makes."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from statistics import mean, stdev
from typing import Any

from src import methods
from src.results.runs import Run, composed_values, experiment_values, percent_wrong
from src.training.log import HEADLINES, headline

IN_COLUMNS = {"name", "model.hidden_dims", "training.epochs", "data.validation_images"}  # have columns of their own
# What tells rows of the same name apart, in this order, and in which words.
TOLD_APART_BY = ("{method}", "{net}", "{epochs} epochs", "{train_images:,} images", "{precision}")
CONFIDENCE = 0.95  # of intervals
RULES = HEADLINES | {"goodness_all_layers": "by all layers", "goodness_and_one_pass": "by both rules"}


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


def result_table(result: dict[str, Any]) -> str:
    """The closing table of one run: its test errors beside those published for its method, and its protocol.

    These are of one data set, and stand beside runs on that alone.
    """
    percent = {rule: f"{error:.2f}" for rule, error in percent_wrong(result).items()}
    headlines = [rule for rule in HEADLINES if rule in percent]
    mnist = result["dataset"] == "mnist"
    name = f"this run ({result['name']}{'' if mnist else ', on ' + result['dataset']})"
    rows = [(name, net_name(result["hidden_dims"]), str(result["epochs"]), percent)]
    for row in methods.PUBLISHED:
        if (row.method, row.dataset) == (result["method"], result["dataset"]):
            rows.append((row.source, row.net, row.epochs, row.errors))
    table = markdown(
        ["", "net", "epochs", *(f"test error (%) {HEADLINES[rule]}" for rule in headlines)],
        [[*row, *(of_row.get(rule, "-") for rule in headlines)] for *row, of_row in rows],
    )
    others = ", ".join(f"{rule} {error}" for rule, error in percent.items() if rule not in headlines)
    then = f" and {result['readout_epochs']} of the read-outs alone" if result["readout_epochs"] else ""
    duration = timedelta(seconds=round(result["train_seconds"]))
    return (
        f"\n{table}\n\n{f'Test error (%) by other rules: {others}.' if others else ''}\n"
        f"Trained on {result['train_images']:,} images of {result['dataset']}, {result['epochs']} epoch(s){then}, "
        f"seed {result['seed']}, {result['precision']} on {result['device']} ({result['hardware']}): "
        f"{duration} of training, {result['seconds_per_epoch']:.2f} s an epoch. "
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


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2] -> "0-2"; [0, 2] -> "0, 2"; `numbers` are in order."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))


def duration(seconds: float) -> str:
    """ "50 s", "11 min", "1.4 h": in the unit that reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def with_spread(values: list[float], *, std: bool = True, interval: bool = False) -> str:
    """ "1.42 ± 0.03 [1.35, 1.49]": the mean, and what is asked for of several values; "1.42" of one, "-" of none."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else "-"
    deviation = f" ± {stdev(values):.2f}" if std else ""
    limits = ""
    if interval:
        from scipy import stats  # here, as a run's start need not wait

        half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / len(values) ** 0.5
        limits = f" [{mean(values) - half:.2f}, {mean(values) + half:.2f}]"
    return f"{mean(values):.2f}{deviation}{limits}"


def error_of(row: list[Run], rule: str, **shown: bool) -> str:
    """A row's error by a rule, `with_spread`; "-" if not all of its runs have it."""
    errors = [run.errors[rule] for run in row if rule in run.errors]
    return with_spread(errors if len(errors) == len(row) else [], **shown)


def measured_with(row: list[Run]) -> str:
    """ "AMD EPYC, Intel Xeon, 1, 2 threads, bf16": the processors, the threads, the precision."""
    parts = {part for run in row for part in run.result["hardware"].split(", ")}
    text = ", ".join(sorted(parts, key=lambda part: (part[:1].isdigit(), part)))
    return re.sub(r" threads?(?=, )", "", text) + f", {row[0].result['precision']}"


def changed(run: Run) -> str:
    """ "negatives=uniform, batch_size=50": the values that are not those of the experiment which the run is named after
    or, without such an experiment, the defaults of its method.
    """
    reference = composed_values(f"method={run.values['method']}") | (experiment_values(run.values["name"]) or {})
    differing = {
        key.rpartition(".")[2]: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for key, value in run.values.items()
        if key not in IN_COLUMNS and value != reference.get(key)
    }
    return ", ".join(f"{key}={text}" for key, text in differing.items())


def names_of(rows: list[list[Run]]) -> list[str]:
    """What to call each row: its run, what is changed, and what else tells it apart from other rows of that name."""
    names = [", ".join(filter(None, [run.result["name"], changed(run)])) for run, *_ in rows]
    for words in TOLD_APART_BY:
        kinds = [words.format(**run.result, net=net_name(run.result["hidden_dims"])) for run, *_ in rows]
        pairs = list(zip(names, kinds, strict=True))
        count = Counter(name for name, _ in set(pairs))
        names = [f"{name}, {kind}" if count[name] > 1 else name for name, kind in pairs]
    return names


PUBLISHED = {row.experiment: row for row in methods.PUBLISHED}


def rule_of(row: list[Run]) -> str:
    """The rule of classification that a row is judged by."""
    name = row[0].result["name"]
    if name in PUBLISHED and row[0].values == experiment_values(name):
        return next(iter(PUBLISHED[name].errors))
    return methods.OWN_RULE.get(name) or headline(row[0].errors)


def table_of(rows: list[list[Run]], columns: dict[str, Callable[[list[Run]], str]]) -> str:
    """A Markdown table with a line for each of `rows`: its name, and what `columns` say of it; empty without rows."""
    lines = [[name, *(cell(row) for cell in columns.values())] for name, row in zip(names_of(rows), rows, strict=True)]
    return markdown(["run", *columns], lines) if lines else ""


def errors_over_seeds(rows: list[list[Run]]) -> str:
    """The errors by both headline rules."""
    return table_of(rows, {
        "net": lambda row: net_name(row[0].result["hidden_dims"]),
        "epochs": lambda row: str(row[0].result["epochs"]),
        "images": lambda row: f"{row[0].result['train_images']:,}",
        "seeds": lambda row: ranges([run.result["seed"] for run in row]),
        **{f"% {how}": partial(error_of, rule=rule) for rule, how in HEADLINES.items()},
    })  # fmt: skip


def errors_by_layer(rows: list[list[Run]]) -> str:
    """The errors by single layers (four columns, or as many as there are) and by all: by goodness, or by a read-out."""

    def error_by(row: list[Run], layers: str) -> str:
        return error_of(row, f"{headline(row[0].errors)}_{layers}")

    rows = [row for row in rows if error_by(row, "layer_1") != "-"]
    deepest = max([4, *(len(row[0].result["hidden_dims"]) for row in rows)])
    return table_of(rows, {
        **{f"layer {layer}": partial(error_by, layers=f"layer_{layer}") for layer in range(1, deepest + 1)},
        "all": lambda row: error_by(row, "all_layers").replace("-", error_by(row, "all_iterations")),
    })  # fmt: skip


def measured_on(rows: list[list[Run]]) -> str:
    """What the runs were computed on, in which precision, and the 95 % interval of their mean error by `rule_of`."""
    return table_of(rows, {
        "hardware, precision": measured_with,
        "rule": lambda row: RULES[rule_of(row)],
        "% [95 % interval]": lambda row: error_of(row, rule_of(row), std=False, interval=True),
    })  # fmt: skip


def experiments_table(rows: list[list[Run]], experiments: list[str]) -> str:
    """Two tables of what was reached with exactly the values of experiments: of those that repeat what was published,
    and of our own.

    Runs with another precision are further lines. The times are those of the shortest run on a CPU and on a GPU.
    """
    of_paper, our_own = [], []
    for name in experiments:
        values, repeated = experiment_values(name), PUBLISHED.get(name)
        reached = [row for row in rows if row[0].values == values]
        for row, its_name in zip(reached, names_of(reached), strict=True):
            called, here = f"`{name}`{its_name.removeprefix(name)}", error_of(row, rule_of(row))
            times = []
            for on_cpu in (True, False):
                seconds = [run.result["train_seconds"] for run in row if (run.result["device"] == "cpu") == on_cpu]
                times.append(duration(min(seconds)) if seconds else "-")
            if repeated:
                rule, error = next(iter(repeated.errors.items()))
                figure = f"{error} {HEADLINES[rule]}"
                of_paper.append([called, repeated.section, figure, here, str(len(row)), *times])
            else:
                net, epochs = net_name(values["model.hidden_dims"]), str(values["training.epochs"])
                our_own.append([called, net, epochs, f"{here} {RULES[rule_of(row)]}", str(len(row)), *times])
    ends = ["here", "n", "CPU", "GPU"]
    tables = {("section", "published"): of_paper, ("net", "epochs"): our_own}
    return "\n\n".join(markdown(["experiment", *columns, *ends], lines) for columns, lines in tables.items() if lines)


def comparison(rows: list[list[Run]], images: str = "test") -> str:
    """Welch's t-test between two rows: a table, a sentence for each rule that both have and, if they are judged by
    different ones, for these, and what each was measured on.

    `images`: which ones the errors are of. Raises SystemExit if there are not two rows of two or more seeds, or nothing
    can be compared.
    """
    from scipy import stats

    names = names_of(rows)
    if len(rows) != 2 or min(map(len, rows)) < 2:
        found = (f"'{name}', n = {len(row)}, as in {row[0].folder}" for name, row in zip(names, rows, strict=True))
        rule = "--compare takes the folders of two configurations, of two seeds or more each"
        sys.exit(f"error: {rule}; there are: {'; '.join(found)}")
    lines, sentences, pairs = [], [], [*zip(RULES, RULES, strict=True), tuple(rule_of(row) for row in rows)]
    for rules in dict.fromkeys(pairs):
        if not all(rule in run.errors for row, rule in zip(rows, rules, strict=True) for run in row):
            continue
        first, second = ([run.errors[rule] for run in row] for row, rule in zip(rows, rules, strict=True))
        tested, said = ["-"] * 4, "no test is possible, as the errors of one side do not vary over the seeds"
        if len(set(first)) > 1 and len(set(second)) > 1:
            test = stats.ttest_ind(first, second, equal_var=False)
            low, high = test.confidence_interval(CONFIDENCE)
            difference = f"{mean(first) - mean(second):.2f} [{low:.2f}, {high:.2f}]"
            tested = [difference, f"{test.statistic:.2f}", f"{test.df:.1f}", f"{test.pvalue:.2g}"]
            better = f"'{names[0 if high < 0 else 1]}' has the lower error"
            p = f"p = {test.pvalue:.2g}" if test.pvalue >= 0.001 else "p < 0.001"
            said = f"{'no difference shown' if low <= 0 <= high else better} ({p})"
        how = " / ".join(dict.fromkeys(RULES[rule] for rule in rules))
        lines.append([how, *(with_spread(errors, interval=True) for errors in (first, second)), *tested])
        sentences.append(f"{how}: {said}")
    if not lines:
        sys.exit(f"error: --compare needs a way to classify that both have: {' and '.join(names)} have none in common")
    sides = [f"{name} (n = {len(row)})" for name, row in zip(names, rows, strict=True)]
    on = [f"'{name}' {measured_with(row)}" for name, row in zip(names, rows, strict=True)]
    header = [f"{images} error (%)", *sides, "first - second", "t", "degrees of freedom", "p"]
    return "\n".join([markdown(header, lines), "", *sentences, f"measured on: {'; '.join(on)}"])
