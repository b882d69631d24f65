"""Run a comparison: every variant with every seed, one record per run under results/.

    python -m experiments scratch food-11 --workers 2
    python -m experiments distillation food-11 --strong teacher.onnx
    python -m experiments --list

Runs are commands of this project's scripts, started by Snakemake (`pip install -r
experiments/requirements.txt`), after the runs that they build on, of other experiments too. Started again, it
continues unfinished runs and leaves out those whose record in results/ tells the variant's settings, network
and photos. A finished run folder that no longer matches its variant is renamed. Small networks gain from
--workers: one run per core. What follows --snakemake is for Snakemake; docs/scaling.md shows a grid on
several machines.
"""

import argparse
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from compression.command_line import UserError, available_cores, number, parser, run
from compression.files.records import file_hash, write_record
from dataset import list_labelled
from experiments.comparisons import EXPERIMENTS

ROOT = Path(__file__).resolve().parent.parent
# options that do not decide the outcome, or that name a file of another run
NO_SETTINGS = {"out", "resume", "record", "data", "max_bytes", "device", "cache"}
NO_SETTINGS |= {"init", "rewind_to", "teacher", "unlabeled"}


def read(path):
    """The JSON object in a file; {} where there is none or it is damaged."""
    try:
        record = json.loads(path.read_text())
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return {}


def settings_in(template):
    """{setting: text} that a variant's commands name: --OPTION TEXT, and KEY=TEXT as --recipe takes it."""
    found = re.findall(r"--(\S+) (?!--)([^\s=]+)(?!\S)", template) + re.findall(r"(\S+)=(\S+)", template)
    named = {key.replace("-", "_"): text for key, text in found}
    return {key: text for key, text in named.items() if key not in NO_SETTINGS}


def settings_of(record):
    """{setting: value} with which a record of any script was made."""
    model, pruning, tuning = record["model"], record.get("pruning", {}), record.get("fine_tuning", {})
    settings = [part.get("settings", {}) for part in (tuning, pruning, record)]
    values = {}
    for part in (model["preprocessing"], model["arguments"], model["training"], record, pruning, *settings):
        values |= part
    values |= {"network": model["architecture"], "reduce": record.get("reduced_to")}
    values |= {"qat_bits": values.get("bits"), "qat_granularity": values.get("granularity")}
    if pruning:
        kept, parameters = pruning["kept"], record["rounds"][-1]["parameters"]
        values |= {"parameters": parameters, "rate": kept[0], "rounds": len(kept)}
    return values


def same(setting, text, value):
    """Whether the text of a command line means a record's value."""
    if setting == "parameters":  # channels and ranks are whole, so a target is not met exactly
        return 0.95 * float(text) <= value <= float(text)

    def plain(part):  # 2e-3 and 0.002 are the same number
        try:
            return float(part)
        except (TypeError, ValueError):
            return str(part)

    values = value if isinstance(value, list) else [value]
    return list(map(plain, text.split(","))) == list(map(plain, values))


@dataclass(frozen=True)
class Job:
    """One run: its variant's template with the seed, its command with everything filled in, where it works,
    where its record goes, and the Jobs that it builds on.
    """

    experiment: str
    template: str
    command: tuple
    out: Path
    result: Path
    needs: tuple

    def matches(self, record, known):
        """Whether a record was made as the variant says: all settings that it names, with a teacher or
        without, from these photos.

        known: fingerprints of training and validation photos, and as "strong" the first 16 digits of the
        SHA-256 of --strong's file; what is not in it is not compared.
        """
        words = self.template.split()
        try:
            values, tuned = settings_of(record), record.get("fine_tuning", {})
            teachers = record.get("teachers") or tuned.get("teachers") or "agreement" in record
            # of photos with unlabelled ones behind them, "+" separates the fingerprints
            data = {split: value.split("+")[0] for split, value in record["data"].items()}
            if ("--teacher" in words, "--unlabeled" in words) != (bool(teachers), "unlabelled" in record):
                return False
            if "{strong}" in words and known.get("strong") not in (None, teachers[0]["sha256"]):
                return False
            if not EXPERIMENTS[self.experiment].subset and not data.items() <= {**data, **known}.items():
                return False
            return all(same(key, text, values[key]) for key, text in settings_in(self.template).items())
        # a setting is missing, or the record is damaged
        except (KeyError, TypeError, AttributeError, IndexError):
            return False

    def recorded(self, known):
        """Whether results/ holds such a record; see `matches`."""
        return self.matches(read(self.result), known)

    def record(self):
        """The record in its run folder; {} before the run has ended."""
        record, trained = read(self.out / "record.json"), read(self.out / "run/record.json")
        if record and trained:  # trained on before it was stored
            record["fine_tuning"] = {key: trained[key] for key in trained if key not in ("model", "history")}
        return record

    def finished(self, known):
        """Whether its run folder holds a record as the variant says, not older than one it builds on."""
        record = self.record()
        return self.matches(record, known) and all(
            need.finished(known) and need.record()["date"] <= record["date"] for need in self.needs
        )

    def described(self):
        """The Job as experiments/Snakefile reads it."""
        command = [f"export PYTHONPATH={shlex.quote(str(ROOT))}"]
        for script, *words in (part.split("\n") for part in "\n".join(self.command).split("\n&&\n")):
            module = script.removesuffix(".py").replace("/", ".")
            command.append(shlex.join([sys.executable, "-m", module, *words]))
        return {
            "needs": [str(need.out / "record.json") for need in self.needs],
            "record": str(self.out / "record.json"),
            "log": str(self.out / "output.txt"),
            "command": " && ".join(command),
        }


def plan(name, data, runs, results, seeds=None, strong="{strong}"):
    """The Jobs of an experiment, seed by seed. seeds: others than its own; strong: a teacher's file."""
    # records keep the command, so no path of this machine is in it
    paths = {"data": data, "model": os.path.relpath(ROOT / "model.bin"), "strong": strong}

    @cache
    def job(name, variant, seed):
        known, needs = {**paths, "out": runs / name / f"{variant}-{seed}"}, []

        def fill(match):
            place, _, other_seed = match[1].partition("@")
            if place in known:
                return str(known[place])
            experiment, _, other = place.rpartition("/")
            needs.append(job(experiment or name, other, int(other_seed or seed)))
            return str(needs[-1].out)

        template = EXPERIMENTS[name].variants[variant].replace("{seed}", str(seed))
        command = tuple(re.sub(r"\{([^}]+)\}", fill, word) for word in template.split())
        result = results / name / f"{variant}-seed{seed}.json"
        return Job(name, template, command, known["out"], result, tuple(dict.fromkeys(needs)))

    experiment = EXPERIMENTS[name]
    return [job(name, variant, seed) for seed in seeds or experiment.seeds for variant in experiment.variants]


def with_needs(jobs):
    """These Jobs and all that they build on, which stand first."""
    return list(dict.fromkeys(one for job in jobs for one in (*with_needs(job.needs), job)))


def start(targets, file, workers, further):
    """Let Snakemake do the target Jobs and whatever they need; `file` describes the Jobs to it."""
    threads = max(1, available_cores() // workers)
    jobs = {f"{job.experiment}/{job.out.name}": job.described() for job in with_needs(targets)}
    write_record(file, {"threads": threads, "jobs": jobs})
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "experiments/Snakefile"]
    command += ["--configfile", file, "--cores", str(threads * workers), "--keep-going", "--nolock"]
    # a record is written whole or not at all, and which ones are out of date was found out before
    command += ["--ignore-incomplete", "--rerun-triggers", "input", "--quiet", "host", "progress", *further]
    with subprocess.Popen([*command, "--", *(job.out / "record.json" for job in targets)]) as process:
        try:
            process.wait()
        except KeyboardInterrupt:  # the runs under way got it too, and save themselves
            process.wait()
            raise


def update(wanted, known, options):
    """Do what is not recorded of the wanted Jobs and what that builds on, and keep the records; returns
    (number to do, Jobs that failed).
    """
    stale = set()
    for job in with_needs(wanted):
        if not job.recorded(known) or stale.intersection(job.needs):
            stale.add(job)
    targets = [job for job in wanted if job in stale]
    todo = [job for job in with_needs(targets) if job in stale or not job.finished(known)]
    print(f"{len(targets)} of {len(wanted)} runs to do, the others are recorded", flush=True)
    if options.dry_run:
        print(*(job.out for job in todo), sep="\n")
        return 0, []
    for job in todo:
        old = job.record()
        if old and not job.finished(known):
            date = re.sub(r"\D", "", str(old.get("date")))
            job.out.rename(job.out.with_name(f"{job.out.name}.{date}"))
    try:
        if targets:
            start(targets, options.runs / f"{options.experiment}.json", options.workers, options.snakemake)
    finally:
        written = set()
        for job in todo:
            if job.finished(known):
                write_record(job.result, job.record())
                written.add(job)
            elif written.intersection(job.needs):  # its record is of what is no longer there
                job.result.unlink(missing_ok=True)
    failed = [job for job in todo if job not in written and all(need.finished(known) for need in job.needs)]
    return len(todo), failed


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("experiment", nargs="?", help="its name")
    options.add_argument("data", type=Path, nargs="?", help="root that holds training/ and validation/")
    options.add_argument("--list", action="store_true", help="list the experiments")
    options.add_argument("--seeds", type=number(int, 0), nargs="+", help="instead of the experiment's")
    options.add_argument("--workers", type=number(int, 1), default=1, help="runs at once")
    options.add_argument("--dry-run", action="store_true", help="list the runs that there are to do")
    options.add_argument("--strong", type=Path, metavar="FILE", help="the strong teacher, if one is needed")
    options.add_argument("--runs", type=Path, default=Path("runs"), help="where runs keep their checkpoints")
    options.add_argument("--results", type=Path, default=ROOT / "results", help="where the records are kept")
    rest = {"nargs": argparse.REMAINDER, "default": [], "metavar": "OPTION"}
    options.add_argument("--snakemake", **rest, help="its options")
    options = options.parse_args(argv)
    if options.list:
        for name, one in EXPERIMENTS.items():
            print(f"{name}: {one.question} ({', '.join(one.variants)}; {len(one.seeds)} seeds)")
        return 0
    name, data = options.experiment, options.data
    if name not in EXPERIMENTS or not data:
        raise UserError(f"name an experiment ({', '.join(EXPERIMENTS)}) and the data directory")
    if not importlib.util.find_spec("snakemake"):
        raise UserError("Snakemake is not installed; pip install -r experiments/requirements.txt")
    wanted = plan(name, data, options.runs, options.results, options.seeds, options.strong or "{strong}")
    if any("{strong}" in job.command for job in with_needs(wanted)):
        raise UserError(f"{name} needs a strong teacher; name its file with --strong FILE")
    if options.strong and not options.strong.is_file():
        raise UserError(f"there is no file {options.strong}; name the strong teacher's file with --strong")
    known = {split: list_labelled(data, split).fingerprint() for split in ("training", "validation")}
    if options.strong:
        known["strong"] = file_hash(options.strong)
    count, failed = update(wanted, known, options)
    if failed:
        raise UserError(
            f"{len(failed)} of {count} runs failed: {', '.join(str(job.out) for job in failed)}; see "
            "output.txt there or Snakemake's messages, fix the cause and run this again"
        )
    return 0


if __name__ == "__main__":
    run(main)
