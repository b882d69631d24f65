"""Build report.pdf and its figures from the records under results/.

    python report/build.py            # report/summary.json, the figures, report.pdf
    python report/build.py --check    # only tell whether they are up to date (status 1 if not, with a reason)

summarise.py reduces the records, claims.py holds what the sentences claim, figures.py draws, report.typ and
text/ hold words and tables. Needs report/requirements.txt, not torch. Nothing is written before all is made.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from claims import broken
from summarise import STANDIN, summarise

from compression.command_line import UserError, parser, run
from compression.files.atomic import write_bytes, write_text

SOURCES, MADE = (".py", ".typ", ".json", ".bib", ".mplstyle"), ("summary.json", "built.json")


def checked_summary(results, photos):
    """The summary of the records; UserError names a claim that no longer holds."""
    summary = summarise(results, photos)
    if reason := broken(summary):
        raise UserError(reason)
    return summary


def digest(path):
    """Of a file that need not exist."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def source():
    """{name: digest} of the texts and programs that the report is made of."""
    files = [path for path in HERE.rglob("*.*") if path.suffix in SOURCES and path.name not in MADE]
    return {str(path.relative_to(HERE)): digest(path) for path in sorted(files)}


def build(results, out, photos=STANDIN):
    """Write OUT/report.pdf, OUT/report/summary.json, figures and built.json; returns their names."""
    try:
        import typst
        from figures import FIGURES, svg
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; `make report` sets up what it needs") from None
    summary = checked_summary(results, photos)
    made = {"report/summary.json": (json.dumps(summary, indent=1) + "\n").encode()}
    made |= {f"report/figures/{name}.svg": svg(draw(summary)) for name, draw in FIGURES.items()}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shutil.copytree(HERE, folder / "report", ignore=shutil.ignore_patterns("figures", *MADE))
        for name, content in made.items():
            write_bytes(folder / name, content)
        main = folder / "report/report.typ"
        made["report.pdf"] = typst.compile(main, root=folder / "report", ignore_system_fonts=True)
    for name, content in made.items():
        write_bytes(Path(out) / name, content)
    files = {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
    built = {"source": source(), "files": files}
    write_text(Path(out) / "report/built.json", json.dumps(built, indent=1) + "\n")
    return list(made)


def outdated(results, out):
    """What keeps the report from being up to date, as a sentence; None if nothing does."""
    try:
        built = json.loads((out / "report/built.json").read_text())
        before = json.loads((out / "report/summary.json").read_text())
    except (OSError, ValueError):
        return "report/built.json or report/summary.json is missing or damaged"
    now = checked_summary(results, before["photos"])
    if changed := [name for name in now if now[name] != before.get(name)]:
        return f"results/ has changed since report.pdf was built: {', '.join(changed)}"
    if changed := sorted(dict(source().items() ^ built["source"].items())):
        return f"report/{changed[0]} has changed since report.pdf was built"
    for name, expected in built["files"].items():
        if digest(out / name) != expected:
            return f"{name} is not the file that was built"
    return None


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--results", type=Path, default=ROOT / "results", help="the records")
    options.add_argument("--out", type=Path, default=ROOT, help="gets report.pdf and report/")
    options.add_argument("--photos", default=STANDIN, help="on which accuracies were measured, e.g. Food-11")
    options.add_argument("--check", action="store_true", help="change nothing; status 1 if out of date")
    options = options.parse_args(argv)
    if options.check:
        reason = outdated(options.results, options.out)
        print(f"{reason}; run make report" if reason else "report.pdf is up to date")
        return int(reason is not None)
    for file in build(options.results, options.out, options.photos):
        print(f"wrote {options.out / file}")
    return 0


if __name__ == "__main__":
    run(main)
