"""Check what the report's sentences claim (claims.json) on the summary; the build fails where one fails.

A claim is written "experiment: variants sign base; ...": > better than the base, < worse, = no measurable
difference. Another metric than accuracy stands before a variant, as gap/variant; the base "before" is the
network before it was cut or stored. In report/text/ a sentence names its claim: #claim("name")[sentence].
"""

import json
from pathlib import Path

CLAIMS = json.loads((Path(__file__).parent / "claims.json").read_text())
SIGNS = {">": 1, "=": 0, "<": -1}


def compared(summary, claim):
    """(comparison, verdict that it needs, difference in the summary) of all that a claim compares."""
    group, _, parts = claim.partition(": ")
    for part in parts.split(";"):
        *variants, sign, base = part.split()
        for variant in variants:
            metric, _, variant = variant.rpartition("/")
            one = summary[group][variant]
            found = one if group == "model" else one[metric or "accuracy"]["vs"][base]
            yield f"{group}: {variant} {sign} {base}", SIGNS[sign], found


def broken(summary):
    """What no longer holds, as a sentence about the first claim that fails; None if all hold."""
    for name, claim in CLAIMS.items():
        for comparison, verdict, found in compared(summary, claim):
            if found["verdict"] != verdict:
                points = f"{100 * found['mean']:+.2f} ± {100 * found['bound']:.2f} points"
                reason = f'the claim "{name}" of the report no longer holds: {comparison} is {points}'
                return f"{reason}; rewrite its sentence in report/text/ and its line in report/claims.json"
    return None
