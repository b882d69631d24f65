"""Accuracies as text, and what may be concluded from them: no more than their error bars allow."""

import math
import statistics
from dataclasses import dataclass

from scipy.stats import t


def percent(share, digits=2):
    """0.62245 -> "62.24"."""
    return f"{100 * share:.{digits}f}"


def points(difference, digits=2):
    """0.0123 -> "+1.23", a difference of accuracies in percentage points."""
    return f"{100 * difference:+.{digits}f}".replace("-", "−")


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
    """Accuracies of one thing against another's.

    verdict: 1 better, -1 worse, 0 where the difference does not exceed `needed`.
    """

    difference: float
    needed: float

    @property
    def verdict(self):
        if abs(self.difference) <= max(self.needed, 1e-9):  # equal means of floats need not be equal floats
            return 0
        return 1 if self.difference > 0 else -1

    def to(self, other):
        """As it follows "is": "3.21 points better than OTHER", or "indistinguishable from OTHER (+0.41 ± 2.37
        points)".
        """
        if self.verdict:
            direction = "better" if self.verdict > 0 else "worse"
            return f"{size_text(self.difference)} points {direction} than {other}"
        return f"indistinguishable from {other} ({cell(self)} points)"


def of_pairs(differences, standard_error):
    """The Comparison behind differences of accuracies, one per seed; standard_error: of one, from its photos
    being a sample.

    With several seeds a difference counts if the 95 % confidence interval of its mean leaves out zero
    (Student's t); with one, if it exceeds two standard errors (training again would add to that).
    """
    seeds = len(differences)
    if seeds > 1:
        needed = t.ppf(0.975, seeds - 1) * statistics.stdev(differences) / math.sqrt(seeds)
    else:
        needed = 2 * standard_error
    return Comparison(statistics.mean(differences), needed)


def compare(ours, theirs, photos):
    """The Comparison of two lists of accuracies on so many photos, one per seed and in the same order of
    seeds.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} accuracies cannot be paired with {len(theirs)}")
    standard_error = math.hypot(sampling_error(ours[0], photos), sampling_error(theirs[0], photos))
    return of_pairs([one - other for one, other in zip(ours, theirs)], standard_error)


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
        return ", and ".join(f"{one.to(other)} at rate {rate}" for rate, one in comparisons.items())
    sizes = listed(
        [
            f"{size_text(one.difference) if first.verdict else cell(one)} at rate {rate}"
            for rate, one in comparisons.items()
        ]
    )
    if first.verdict:
        return f"{'better' if first.verdict > 0 else 'worse'} than {other} (by {sizes}, in points)"
    return f"indistinguishable from {other} ({sizes}, in points)"


def sorted_out(comparisons, other):
    """Several things compared with OTHER, {"a": Comparison, ...}, by verdict.

    "a (+1.00) and b (+2.00) are better than OTHER; c (+0.10) is indistinguishable from OTHER"
    """
    parts = []
    for verdict, text in {1: "better than", 0: "indistinguishable from", -1: "worse than"}.items():
        names = [
            f"{name} ({points(one.difference)})"
            for name, one in comparisons.items()
            if one.verdict == verdict
        ]
        if names:
            parts.append(f"{listed(names)} {'is' if len(names) == 1 else 'are'} {text} {other}")
    return "; ".join(parts)


def cell(comparison):
    """A Comparison in points, "+1.23 ± 0.80": the difference, and behind the sign what it has to exceed."""
    return f"{points(comparison.difference)} ± {percent(comparison.needed)}"
