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


def size_text(difference):
    """-0.0123 -> "1.23", where words tell the direction."""
    return points(abs(difference)).lstrip("+")


def mean_std(values):
    """Accuracies in per cent as "48.40 ± 0.13" (sample deviation); one value stands alone."""
    if len(values) == 1:
        return percent(values[0])
    return f"{percent(statistics.mean(values))} ± {percent(statistics.stdev(values))}"


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

    def to(self, other):
        """As it follows "a is": "3.21 points better than OTHER (3 seeds)"; what keeps it from a conclusion if there is none."""
        basis = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        if self.verdict:
            direction = "better" if self.verdict > 0 else "worse"
            return f"{size_text(self.difference)} points {direction} than {other} ({basis})"
        bars = "sampling error of one run" if self.seeds == 1 else "error bars"
        return f"not different from {other} beyond the {bars} ({points(self.difference)} points, {basis})"


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
    verdict = 0 if abs(first - second) <= bar else 1 if first > second else -1
    return Comparison(first - second, verdict, seeds)


def verdict_text(comparison, better, same, worse):
    """The sentence that goes with the verdict."""
    return {1: better, 0: same, -1: worse}[comparison.verdict]


def verdicts(comparisons):
    """The set of verdicts in {"a": Comparison, ...}: {1} where all of them are better."""
    return {one.verdict for one in comparisons.values()}


def unanimous(comparisons, better, mixed, worse):
    """The sentence for comparisons that all come out alike, or the one for anything else."""
    found = verdicts(comparisons)
    return better if found == {1} else worse if found == {-1} else mixed


def together(comparisons, other):
    """As `Comparison.to`, for the same question at several rates: {"0.95": Comparison, ...} against OTHER."""
    first, *rest = comparisons.values()
    if any(one.verdict != first.verdict for one in rest):
        return ", and ".join(f"at rate {rate} {one.to(other)}" for rate, one in comparisons.items())
    size = size_text if first.verdict else points
    sizes = listed([f"{size(one.difference)} at rate {rate}" for rate, one in comparisons.items()])
    if first.verdict:
        return f"{'better' if first.verdict > 0 else 'worse'} than {other} (by {sizes}, in points)"
    bars = "sampling error" if first.seeds == 1 else "error bars"
    return f"not different from {other} beyond the {bars} ({sizes}, in points)"


def sorted_out(comparisons, other):
    """Several things compared with OTHER, {"a": Comparison, ...}, by verdict.

    "a (+1.00) and b (+2.00) are better than OTHER; c (+0.10) is not different from OTHER beyond the error bars"
    """
    bars = "sampling error" if any(one.seeds == 1 for one in comparisons.values()) else "error bars"
    texts = {1: f"better than {other}", 0: f"not different from {other} beyond the {bars}", -1: f"worse than {other}"}
    parts = []
    for verdict, text in texts.items():
        names = [f"{name} ({points(one.difference)})" for name, one in comparisons.items() if one.verdict == verdict]
        if names:
            parts.append(f"{listed(names)} {'is' if len(names) == 1 else 'are'} {text}")
    return "; ".join(parts)


def cell(comparison):
    """A Comparison in a table: "+1.23, better"; "open" where the error bars do not allow to say."""
    return f"{points(comparison.difference)}, {verdict_text(comparison, 'better', 'open', 'worse')}"
