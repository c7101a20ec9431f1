"""Statistics over seeds: the confidence interval of a mean, and whether two configurations differ (Welch's t-test).

All figures are test errors in percent, one a seed.
"""

import warnings
from math import sqrt
from statistics import mean, stdev
from typing import NamedTuple

from scipy import stats

CONFIDENCE = 0.95


class Summary(NamedTuple):
    n: int
    mean: float
    std: float | None  # of the sample; this and the interval of the mean are None for a single value
    low: float | None
    high: float | None


class Welch(NamedTuple):
    difference: float  # of the means, first minus second
    low: float  # of its confidence interval
    high: float
    t: float
    df: float  # degrees of freedom
    p: float  # two-sided


def summarise(values: list[float]) -> Summary:
    """Mean, standard deviation and 95 % confidence interval of the mean (Student's t)."""
    n, centre = len(values), mean(values)
    if n == 1:
        return Summary(n, centre, None, None, None)
    std = stdev(values)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / sqrt(n)
    return Summary(n, centre, std, centre - half, centre + half)


def welch(first: list[float], second: list[float]) -> Welch | None:
    """Welch's t-test of two samples of two or more values; None where neither varies, as there is no t then."""
    if len(set(first)) == len(set(second)) == 1:
        return None
    with warnings.catch_warnings():
        # SciPy warns where one sample does not vary. Welch's test is defined there: the other's spread decides.
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        result = stats.ttest_ind(first, second, equal_var=False)
    low, high = result.confidence_interval(CONFIDENCE)
    return Welch(mean(first) - mean(second), *map(float, (low, high, result.statistic, result.df, result.pvalue)))


def verdict(samples: dict[str, list[float]], test: Welch | None) -> str:
    """One sentence on what the two samples, by name, show by their `welch`."""
    (a, first), (b, second) = samples.items()
    means = f"'{a}' {mean(first):.2f} and '{b}' {mean(second):.2f} %"
    n = f"n = {len(first)} and {len(second)}"
    if test is None and mean(first) == mean(second):
        return f"no difference shown: {mean(first):.2f} % with every seed of both ({n})"
    if test is None:
        return f"no test is possible: {means} with every seed ({n}), so there is no spread to judge the difference by"
    basis = f"p {f'= {test.p:.2g}' if test.p >= 0.001 else '< 0.001'} (Welch's t-test, {n})"
    if test.low <= 0 <= test.high:
        return (
            f"no difference shown: {means}, difference {test.difference:.2f} [{test.low:.2f}, {test.high:.2f}], {basis}"
        )
    lower, higher = sorted([mean(first), mean(second)])
    low, high = sorted([abs(test.low), abs(test.high)])
    return (
        f"'{a if test.difference < 0 else b}' has the lower error: {lower:.2f} against {higher:.2f} %, "
        f"difference {abs(test.difference):.2f} [{low:.2f}, {high:.2f}], {basis}"
    )
