"""Build report.pdf and its figures from the records under results/.

    python report/build.py            # figures, report.pdf, and report/built.json, which tells what they were
    made of python report/build.py --check    # only tell whether they are up to date (status 1 if not, with
    the file's name)

Needs what report/requirements.txt names and numpy, but no torch. What the sections say is in sections.py and
text/*.typ, the figures in figures.py. Nothing is written before everything is made.
"""

import hashlib
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import sections  # noqa: E402
from readings import PHOTO_SETS, input_pixels  # noqa: E402

from compression.command_line import UserError, parser, run  # noqa: E402
from compression.files.atomic import write_bytes, write_text  # noqa: E402
from experiments.__main__ import EXPERIMENTS, plan  # noqa: E402

STANDIN = "stand-in"
IN_RESULTS = ("pruning", "bits")  # figures that results/ gets a copy of
TOLERANCE = 0.002  # of an accuracy measured again on the same photos: other batches round otherwise


class Records:
    """The records that the report stands on, each read once.

    results: folder. photos: what an accuracy was measured on. Raises UserError for a missing, damaged or
    stale record.
    """

    def __init__(self, results, photos=STANDIN):
        self.results, self.photos, self.digests = Path(results), photos, {}
        self.contents = {}

    def record(self, name, command="the script that writes it"):
        """The record `name`, a path below results/."""
        if name not in self.contents:
            try:
                content = (self.results / name).read_bytes()
                self.contents[name] = json.loads(content)
                self.contents[name]["command"]
            except FileNotFoundError:
                raise UserError(
                    f"the record results/{name} is missing; run {command}, "
                    "or put its section on PENDING in report/sections.py"
                ) from None
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"the record results/{name} cannot be read ({type(error).__name__}: {error}); "
                    f"run {command} again"
                ) from None
            self.digests[name] = hashlib.sha256(content).hexdigest()
            self._check_photos(name, self.contents[name])
        return self.contents[name]

    def _check_photos(self, name, record):
        """A number measured on other photos than the report says is not for this report."""
        standin = self.photos == STANDIN
        for split, fingerprint in record.get("data", {}).items():
            if split in ("validation", "testing") and (fingerprint in PHOTO_SETS) != standin:
                raise UserError(
                    f"the record results/{name} was measured on {split} photos {fingerprint}, "
                    f"which are {'not ' if standin else ''}in results/photo_sets.json; "
                    f"run it again on {self.photos}, or name the photos with --photos"
                )

    def experiment(self, name, optional=()):
        """{variant: records by seed}; every variant needs every seed that any has, and the first.

        Optional variants are left out where they have no record at all.
        """
        if name not in EXPERIMENTS:
            raise UserError(
                f"there is no experiment {name} in experiments.py; "
                "define it, or put its section on PENDING in report/sections.py"
            )
        names = [path.name for path in (self.results / name).glob("*.json")]
        there = [
            (match[1], int(match[2]))
            for file in names
            if (match := re.fullmatch(r"(.+)-seed(\d+)\.json", file))
        ]
        variants, seeds = {variant for variant, _ in there}, {seed for _, seed in there}
        jobs = {job.result.name: job for job in plan(name, Path("data"), Path("runs"), self.results)}
        groups = {}
        for variant in EXPERIMENTS[name].variants:
            if variant in optional and variant not in variants:
                continue
            for seed in sorted(seeds | {EXPERIMENTS[name].seeds[0]}):
                file = f"{variant}-seed{seed}.json"
                record = self.record(f"{name}/{file}", f"`python experiments.py {name} DATA --seeds {seed}`")
                groups.setdefault(variant, []).append(record)
                if file in jobs and not jobs[file].recorded({}):
                    raise UserError(
                        f"the record results/{name}/{file} is stale: it holds another command than "
                        f"the experiment's; run `python experiments.py {name} DATA`"
                    )
        return groups

    def folder(self, name):
        """{file name: record} of results/NAME/."""
        files = sorted(path.name for path in (self.results / name).glob("*.json"))
        if not files:
            raise UserError(
                f"the records results/{name}*.json are missing; run the script that writes them, "
                "or put their section on PENDING in report/sections.py"
            )
        return {file: self.record(f"{name}{file}") for file in files}

    def of(self, section):
        """What a Section needs, by name."""
        found = {}
        for name in section.needs:
            if name.endswith("/"):
                found[name] = self.folder(name)
            elif name.endswith(".json"):
                found[name] = self.record(name)
            else:
                found[name] = self.experiment(name, section.optional)
        return found


def same_network(first, second):
    """Whether two records are of one network.

    BN folded or not is no difference, nor is an argument that one of them leaves at its default.
    """
    if first["model"]["architecture"] != second["model"]["architecture"]:
        return False
    one, other = first["model"]["arguments"], second["model"]["arguments"]
    return all(one[key] == other[key] for key in one.keys() & other.keys() - {"folded"})


def check_evaluation(name, record, shipped, accuracy):
    """UserError if evaluate.py's record of the shipped model is of another input size or accuracy than
    quantize.py's.
    """
    pixels, expected = input_pixels(record), input_pixels(shipped)
    if pixels != expected:
        raise UserError(
            f"the record results/{name} is of {pixels} px and results/model.json of {expected} px; "
            f"store the checkpoint with quantize.py --bits 32 --size {expected} and measure that with "
            "evaluate.py"
        )
    if abs(record["accuracy"] - accuracy) > TOLERANCE:
        raise UserError(
            f"the record results/{name} is stale: its accuracy is {record['accuracy']:.4f} "
            f"and results/model.json says {accuracy:.4f}; run evaluate.py --record again"
        )


def check_model(found):
    """UserError if records about the shipped model are of different models, or of different accuracy.

    found: {name: record} as needed
    """
    shipped = found["model.json"]
    for name, record in found.items():
        if name != "model.json" and not same_network(record, shipped):
            raise UserError(
                f"the record results/{name} is stale: it is of another network than results/model.json; "
                "measure the shipped model again"
            )
    for name, when in (("evaluation.json", "after"), ("evaluation_before.json", "before")):
        if name in found:
            check_evaluation(name, found[name], shipped, shipped[f"validation_accuracy_{when}"])


def active():
    """{name: Section} of those that are not pending."""
    unknown = set(sections.PENDING) - sections.SECTIONS.keys()
    assert not unknown, unknown
    return {name: section for name, section in sections.SECTIONS.items() if name not in sections.PENDING}


def gather(results, photos=STANDIN):
    """(Records, {section: its records}) of the active sections, checked; UserError also if a pending one is
    not pending any more.
    """
    records = Records(results, photos)
    found = {name: records.of(section) for name, section in active().items()}
    for needs in found.values():
        if "model.json" in needs:
            single = {name: one for name, one in needs.items() if name.endswith(".json")}
            check_model(
                single | {f"input_size/{file}": one for file, one in needs.get("input_size/", {}).items()}
            )
    for name in sections.PENDING:
        try:
            Records(results, photos).of(sections.SECTIONS[name])
        except UserError:
            continue
        raise UserError(
            f"the section {name} is on PENDING in report/sections.py though results/ holds all its records; "
            "take it off the list"
        )
    return records, found


def all_records(need):
    """The records in a record, in {file: record} of a folder, or in {variant: [record]} of an experiment."""
    if "command" in need:
        return [need]
    return [record for group in need.values() for record in (group if isinstance(group, list) else [group])]


def short_commit(record):
    """Seven digits, with a plus if there were changes that were not committed."""
    return record["commit"][:7] + ("+" if record["commit"].endswith("+changes") else "")


def provenance(found):
    """(rows (place in results/, records, seeds, commits, processor) on where the numbers come from, "").

    If all are from one processor, the rows without it, and it.
    """
    rows = []
    for name, need in {name: need for needs in found.values() for name, need in needs.items()}.items():
        records = list(all_records(need))
        seeds = sorted({record["seed"] for record in records if record.get("seed") is not None})
        commits = sorted(set(map(short_commit, records)))
        devices = sorted({re.sub(r", \d+ threads?$", "", record["device"]) for record in records})
        rows.append(
            [
                name,
                str(len(records)),
                ", ".join(map(str, seeds)) or "–",
                ", ".join(commits),
                ", ".join(devices),
            ]
        )
    processors = {row[-1] for row in rows}
    if len(processors) == 1:
        return [row[:-1] for row in rows], processors.pop()
    return rows, ""


def values(records, found, drawn):
    """Everything that the text refers to, as plain text by section."""
    rows, processor = provenance(found)
    versions = next(iter(records.contents.values()))["versions"]
    return {
        **{name: sections.SECTIONS[name].values(needs) for name, needs in found.items()},
        "sections": list(found),
        "drawn": drawn,
        "photos": records.photos,
        "standin": records.photos == STANDIN,
        "not_measured": sections.not_measured(sections.PENDING),
        "provenance": rows,
        "processor": processor,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def source_digest():
    """Of everything in report/ that decides what the report says."""
    digest = hashlib.sha256()
    for path in sorted(
        path for pattern in ("*.py", "*.typ", "text/*.typ", "published.json") for path in HERE.glob(pattern)
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def compile_pdf(data, folder):
    """The PDF as bytes; folder: holds figures/, gets a copy of the text."""
    import typst

    for path in [*HERE.glob("*.typ"), *HERE.glob("text/*.typ")]:
        (folder / path.relative_to(HERE)).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / path.relative_to(HERE))
    return typst.compile(
        str(folder / "report.typ"),
        root=str(folder),
        ignore_system_fonts=True,
        sys_inputs={"report": json.dumps(data)},
    )


def build(results, out, photos=STANDIN):
    """Write OUT/report.pdf, OUT/report/figures/, OUT/report/built.json and the copies for OUT/results/;
    returns their names.
    """
    try:
        import figures
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed; `make report` sets up what report/requirements.txt names"
        ) from None
    records, found = gather(results, photos)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "figures").mkdir()
        drawn = [
            figure
            for section, needs in found.items()
            for figure in sections.SECTIONS[section].figures
            if figures.draw(figure, needs, photos, folder / "figures")
        ]
        made = {"report.pdf": compile_pdf(values(records, found, drawn), folder)}
        made |= {
            f"report/figures/{path.name}": path.read_bytes()
            for path in sorted((folder / "figures").iterdir())
        }
    for figure in drawn:
        if figure in IN_RESULTS:
            made |= {
                f"results/{figure}.{kind}": made[f"report/figures/{figure}.{kind}"] for kind in ("svg", "png")
            }
    for path in (Path(out) / "report/figures").glob("*"):  # of sections that are no more
        if path.suffix in (".svg", ".png") and f"report/figures/{path.name}" not in made:
            path.unlink()
    for file, content in made.items():
        write_bytes(Path(out) / file, content)
    built = {
        "photos": photos,
        "source": source_digest(),
        "records": dict(sorted(records.digests.items())),
        "files": {file: hashlib.sha256(content).hexdigest() for file, content in made.items()},
    }
    write_text(Path(out) / "report/built.json", json.dumps(built, indent=1) + "\n")
    return list(made)


def outdated(results, out):
    """What keeps the report from being up to date, as a sentence; None if nothing does."""
    try:
        built = json.loads((Path(out) / "report/built.json").read_text())
    except (OSError, ValueError):
        return "report/built.json, which tells what report.pdf was made of, is missing or damaged"
    now = gather(results, built["photos"])[0].digests
    before = built["records"]
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            change = (
                "is new" if name not in before else "is used no more" if name not in now else "has changed"
            )
            return f"the record results/{name} {change} since report.pdf was built"
    if built["source"] != source_digest():
        return "the text or code in report/ has changed since report.pdf was built"
    for name, digest in built["files"].items():
        path = Path(out) / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return f"{name} is not the file that was built"
    return None


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--results", type=Path, default=ROOT / "results", help="the records")
    options.add_argument(
        "--out", type=Path, default=ROOT, help="gets report.pdf, report/ and results/ with what is made"
    )
    options.add_argument(
        "--photos", default=STANDIN, metavar="NAME", help="what the accuracies were measured on, e.g. Food-11"
    )
    options.add_argument(
        "--check", action="store_true", help="change nothing; status 1 if the report is out of date"
    )
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
