"""Fill the generated tables of README.md and docs/ from the summary of the records in this folder.

    python results/fill_readme.py            # rewrite the tables
    python results/fill_readme.py --check    # only tell whether they are up to date (status 1 if not)

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; tables.md.jinja says what it holds.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "report")]

import jinja2
from summarise import summarise

from compression.command_line import UserError, parser, run
from compression.files.atomic import write_text

PAGES = ("README.md", *(f"docs/{page}.md" for page in ("findings", "teachers", "onnx", "speed", "scaling")))
TABLE = re.compile(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", re.DOTALL)


def mean_std(one):
    """{"mean": 0.62, "std": 0.01} -> "62.00 ± 1.00"."""
    deviation = "" if one["std"] is None else f" ± {100 * one['std']:.2f}"
    return f"{100 * one['mean']:.2f}{deviation}"


def size(one):
    """Input size of a variant, and that of its training views if it is another."""
    views = "" if one["views"] == one["pixels"] else f" (views of {one['views']})"
    return f"{one['pixels']} px{views}"


def tables(summary):
    """{name: the table between its marks}."""
    made = jinja2.Environment(undefined=jinja2.StrictUndefined)
    made.filters |= {
        "num": lambda number: f"{number:,.0f}",
        "pct": lambda share: f"{100 * share:.2f}",
        "pts": lambda share: f"{100 * share:+.2f}".replace("-", "−"),
        "pm": mean_std,
        "size": size,
    }
    text = made.from_string((HERE / "tables.md.jinja").read_text(encoding="utf-8")).render(s=summary)
    return {match[1]: match[0] for match in TABLE.finditer(text)}


def fill(pages, summary):
    """{page: text with every table made anew}; UserError unless each has its place on exactly one page."""
    made, there = tables(summary), [name for text in pages.values() for name in TABLE.findall(text)]
    for name in sorted({*made, *there}):
        if there.count(name) != 1 or name not in made:
            reason = f"need exactly one table {name} between its marks, as results/tables.md.jinja has it"
            raise UserError(f"{', '.join(pages)} {reason}; restore them")
    return {page: TABLE.sub(lambda match: made[match[1]], text) for page, text in pages.items()}


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--check", action="store_true", help="change nothing; status 1 if out of date")
    options = options.parse_args(argv)
    before = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    after = fill(before, summarise())
    stale = [page for page in PAGES if after[page] != before[page]]
    if options.check:
        advice = f"{', '.join(stale)} out of date; run python results/fill_readme.py"
        print(advice if stale else "README.md and docs/ are up to date")
        return int(bool(stale))
    for page in stale:
        write_text(ROOT / page, after[page])
    return 0


if __name__ == "__main__":
    run(main)
