"""Accuracies as text, and what may be concluded from them: no more than their error bars allow."""

import math
import statistics
from dataclasses import dataclass


def percent(share, digits=2):
    """0.62245 -> "62.24"."""
    return f"{100 * share:.{digits}f}"


def points(difference):
    """0.0123 -> "+1.23", a difference of accuracies in percentage points."""
    return f"{100 * difference:+.2f}".replace("-", "−")


def mean_std(values):
    """Accuracies in per cent as "48.40 ± 0.13" (sample deviation); one value stands alone."""
    return percent(values[0]) if len(values) == 1 else f"{percent(statistics.mean(values))} ± {percent(statistics.stdev(values))}"


def seeds_text(values):
    """[a, b, c] -> "3 seeds"; one is called what it is."""
    return "one seed" if len(values) == 1 else f"{len(values)} seeds"


def listed(names):
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "none"


def sampling_error(accuracy, photos):
    """Standard error of an accuracy measured on so many photos, if they were drawn by chance."""
    return math.sqrt(accuracy * (1 - accuracy) / photos)


@dataclass(frozen=True)
class Comparison:
    """Accuracies of one thing against another's. verdict: 1 better, -1 worse, 0 where the error bars do not allow to say."""

    difference: float
    verdict: int
    seeds: int

    @property
    def text(self):
        """As it follows "a is ...": "3.21 points better than" ...; says what kept it from a conclusion where there is none."""
        size, basis = points(abs(self.difference)).lstrip("+"), "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        if self.verdict:
            return f"{size} points {'better' if self.verdict > 0 else 'worse'} than ({basis})"
        bars = "sampling error of one run" if self.seeds == 1 else "error bars"
        return f"not different beyond the {bars} ({points(self.difference)} points, {basis}) from"


def compare(ours, theirs, photos):
    """The Comparison of two lists of accuracies, one per seed.

    With several seeds a difference counts if the bars of mean ± std do not overlap; with one, if it exceeds two standard
    errors of a difference between two accuracies on so many photos (training again would add to that).
    """
    first, second = statistics.mean(ours), statistics.mean(theirs)
    seeds = min(len(ours), len(theirs))
    if seeds > 1:
        bar = statistics.stdev(ours) + statistics.stdev(theirs)
    else:
        bar = 2 * math.hypot(sampling_error(first, photos), sampling_error(second, photos))
    return Comparison(first - second, 0 if abs(first - second) <= bar else 1 if first > second else -1, seeds)


def verdict_text(comparison, better, same, worse):
    """The sentence that goes with the verdict."""
    return {1: better, 0: same, -1: worse}[comparison.verdict]
