"""Statistics over seeds: the confidence interval of a mean, and whether two configurations differ (Welch's t-test).

All figures are errors in percent, one a seed. SciPy is imported where it is needed, as a run's start need not wait.
"""

from statistics import mean, stdev
from typing import Any

CONFIDENCE = 0.95


def interval_of_mean(values: list[float]) -> tuple[float, float]:
    """Ends of the 95 % confidence interval of the mean of two or more values (Student's t)."""
    from scipy import stats

    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half


def verdict(first: str, second: str, test: Any) -> str:
    """What the `welch` of two samples of these names shows, in one sentence."""
    if test is None:
        return "no test is possible, as the errors of one side do not vary over the seeds"
    low, high = test.confidence_interval(CONFIDENCE)
    p = f"p = {test.pvalue:.2g}" if test.pvalue >= 0.001 else "p < 0.001"
    if low <= 0 <= high:
        return f"no difference shown ({p})"
    return f"'{first if high < 0 else second}' has the lower error ({p})"
