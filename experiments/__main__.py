"""Run a comparison: every variant with every seed, one record per run under results/.

    python -m experiments scratch food-11 --workers 2
    python -m experiments distillation food-11 --strong teacher.onnx
    python -m experiments --list

Runs are ordinary commands of this project's scripts. Snakemake (`pip install -r experiments/requirements.txt`)
starts them, --workers at once, what others build on first, also where that is of another comparison. Run again,
it continues unfinished runs and skips those whose record in results/ tells the same settings, network and
photos; a finished run folder that does not answer its variant any more is renamed. What follows --snakemake
goes to Snakemake as it is; docs/scaling.md shows a grid on several machines.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from compression.command_line import UserError, available_cores, number, parser, run
from compression.files.records import write_record
from experiments.comparisons import EXPERIMENTS

ROOT = Path(__file__).resolve().parent.parent
ALIASES = {
    "network": "architecture",
    "reduce": "reduced_to",
    "qat_bits": "bits",
    "qat_granularity": "granularity",
}
# options that say where and how something is computed, which no record has to repeat
ELSEWHERE = ("out", "resume", "record", "data", "max_bytes", "device", "cache", "init")


def read(path):
    """The JSON object in a file; {} where there is none or it is damaged."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def meaning(template):
    """{option: its words} of a variant's commands, keys of --recipe, --set and --target among the options."""
    found, option = {}, None
    for word in template.split():
        key, equals, value = word.partition("=")
        if word == "&&":
            option = None
        elif word.startswith("--"):
            option = word.removeprefix("--").replace("-", "_")
        elif option in ("recipe", "set", "target") and equals:
            found[key] = value
        elif option:
            found[option] = word
    return {option: words for option, words in found.items() if option not in ELSEWHERE}


def told(record):
    """{option: value} of what a record of any script says that it was made with."""
    pruning, tuning, model = (record.get(key, {}) for key in ("pruning", "fine_tuning", "model"))
    training, kept = model["training"], pruning.get("kept")
    return {
        **model["preprocessing"],
        **model["arguments"],
        **{key: training[key] for key in ("alpha", "temperature", "beta") if key in training},
        "architecture": model["architecture"],
        **{
            key: value
            for part in (tuning.get("settings"), pruning, pruning.get("settings"), record.get("settings"))
            for key, value in (part or {}).items()
        },
        **{key: record[key] for key in ("bits", "granularity", "scale", "reduced_to") if key in record},
        **({"rate": kept[0], "rounds": len(kept)} if kept else {}),
        **({"parameters": record["rounds"][-1]["parameters"]} if record.get("rounds") else {}),
    }


def same(option, words, value):
    """Whether the words of a command line mean the value of a record."""
    if isinstance(value, list):
        return len(parts := words.split(",")) == len(value) and all(
            map(same, [option] * len(value), parts, value)
        )
    try:
        found, value = float(words), float(value)
    except (TypeError, ValueError):
        return words == str(value)
    if option == "parameters":  # the most that can be had below it
        return 0.95 * found <= value <= found
    return math.isclose(found, value, rel_tol=1e-6)


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

    def answered(self, record, fingerprints, strong=None):
        """Whether a record was made as this variant says, with these photos: every option that the variant
        names has its value.

        fingerprints: of the photos by split; strong: the first 16 digits of the SHA-256 of --strong's file.
        """
        named = meaning(self.template)
        named = {ALIASES.get(option, option): words for option, words in named.items()}
        teachers = record.get("teachers") or ([{}] if "agreement" in record else [])
        asked = (named.pop("teacher", None), named.pop("unlabeled", None))
        try:
            values, data = told(record), record["data"].items()
            return (
                bool(asked[0]) == bool(teachers)
                and bool(asked[1]) == ("unlabelled" in record)
                and (not strong or asked[0] != "{strong}" or teachers[0].get("sha256") == strong)
                and all(
                    option in values and same(option, words, values[option])
                    for option, words in named.items()
                )
                and (
                    EXPERIMENTS[self.experiment].subset
                    or all(
                        fingerprints.get(split, own) == own
                        for split, value in data
                        for own in [value.split("+")[0]]
                    )
                )
            )
        except (KeyError, TypeError, AttributeError):  # a damaged record answers nothing
            return False

    def recorded(self, fingerprints, strong=None):
        """Whether results/ holds such a record; see `answered`."""
        return self.answered(read(self.result), fingerprints, strong)

    def record(self):
        """What its run folder holds as its record."""
        record, trained = read(self.out / "record.json"), read(self.out / "run/record.json")
        if record and trained:  # what was stored had been trained on before, in the same run
            record["fine_tuning"] = {key: trained[key] for key in trained.keys() - {"model", "history"}}
        return record


def plan(name, data, runs, results, seeds=None, strong="{strong}"):
    """The Jobs of an experiment, seed by seed. seeds: others than the experiment's."""

    @cache
    def job(name, variant, seed):
        out, needs = runs / name / f"{variant}-{seed}", []
        # records keep the command, so no path of this machine is in it
        known = {
            "data": data,
            "seed": seed,
            "out": out,
            "model": os.path.relpath(ROOT / "model.bin"),
            "strong": strong,
        }

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
        return Job(name, template, command, out, result, tuple(dict.fromkeys(needs)))

    return [
        job(name, variant, seed)
        for seed in seeds or EXPERIMENTS[name].seeds
        for variant in EXPERIMENTS[name].variants
    ]


def with_needs(jobs):
    """These Jobs and all that they build on, which stand first."""
    return list(dict.fromkeys(one for job in jobs for one in (*with_needs(job.needs), job)))


def shell_command(job):
    """The command of a Job for a shell, wherever the project lies."""
    words, script = [f"export PYTHONPATH={shlex.quote(str(ROOT))};"], True
    for word in job.command:
        if script:
            module = word.removesuffix(".py").replace("/", ".")
            words += [shlex.quote(sys.executable), "-m", module]
        else:
            words.append(word if word == "&&" else shlex.quote(word))
        script = word == "&&"
    return " ".join(words)


def start(jobs, targets, options):
    """Let Snakemake run the target Jobs and whatever they need; jobs: all that it may run."""
    threads = max(1, available_cores() // options.workers)
    described = {
        f"{job.experiment}/{job.out.name}": {
            "needs": [str(one.out / "record.json") for one in job.needs],
            "record": str(job.out / "record.json"),
            "log": str(job.out / "output.txt"),
            "command": shell_command(job),
        }
        for job in jobs
    }
    file = options.runs / f"{options.experiment}.json"
    write_record(file, {"threads": threads, "jobs": described})
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        ROOT / "experiments/Snakefile",
        "--configfile",
        file,
    ]
    command += [
        "--cores",
        str(threads * options.workers),
        "--keep-going",
        "--nolock",
        "--quiet",
        "host",
        "progress",
    ]
    # a record is written whole or not at all, and which ones are out of date was found out before
    command += ["--ignore-incomplete", "--rerun-triggers", "input", *options.snakemake]
    process = subprocess.Popen([*command, "--", *(job.out / "record.json" for job in targets)])
    try:
        process.wait()
    except KeyboardInterrupt:  # the runs under way got it too, and save themselves
        process.wait()
        raise


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("experiment", nargs="?", help="its name")
    options.add_argument("data", type=Path, nargs="?", help="root that holds training/ and validation/")
    options.add_argument("--list", action="store_true", help="list the experiments")
    options.add_argument(
        "--seeds", type=number(int, 0), nargs="+", help="these seeds only (default: the experiment's)"
    )
    options.add_argument(
        "--workers",
        type=number(int, 1),
        default=1,
        help="runs at once; small networks gain from one run per core",
    )
    options.add_argument(
        "--strong",
        type=Path,
        metavar="FILE",
        help="teacher file of the experiments that have a strong teacher",
    )
    options.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where the runs keep their checkpoints"
    )
    options.add_argument("--results", type=Path, default=ROOT / "results", help="where the records are kept")
    options.add_argument(
        "--snakemake",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="OPTION",
        help="further options of Snakemake",
    )
    options = options.parse_args(argv)
    if options.list:
        for name, experiment in EXPERIMENTS.items():
            print(
                f"{name}: {experiment.question} ({', '.join(experiment.variants)}; {len(experiment.seeds)} "
                "seeds)"
            )
        return 0
    if options.experiment not in EXPERIMENTS or not options.data:
        raise UserError(
            f"name an experiment ({', '.join(EXPERIMENTS)}) and the data directory; --list describes them"
        )
    if not importlib.util.find_spec("snakemake"):
        raise UserError(
            "experiments are run by Snakemake, which is not installed; "
            "run `pip install -r experiments/requirements.txt`"
        )
    if options.strong and not options.strong.is_file():
        raise UserError(f"there is no teacher file {options.strong}; name one that exists with --strong")
    asked = plan(
        options.experiment,
        options.data,
        options.runs,
        options.results,
        options.seeds,
        options.strong or "{strong}",
    )
    jobs = with_needs(asked)
    if any("{strong}" in job.command for job in jobs):
        raise UserError(
            f"the experiment {options.experiment} needs a strong teacher; name its file with --strong FILE"
        )
    strong = options.strong and hashlib.sha256(options.strong.read_bytes()).hexdigest()[:16]

    from dataset import list_labelled  # not before: the report lists the experiments where there is no torch

    fingerprints = {
        split: list_labelled(options.data, split).fingerprint() for split in ("training", "validation")
    }

    def finished(job):
        """Whether its run folder holds what the variant asks for, not older than what it builds on."""
        record = job.record()
        return job.answered(record, fingerprints, strong) and all(
            finished(one) and one.record()["date"] <= record["date"] for one in job.needs
        )

    stale = set()
    for job in jobs:
        if not job.recorded(fingerprints, strong) or stale.intersection(job.needs):
            stale.add(job)
    targets = [job for job in asked if job in stale]
    print(
        f"{options.experiment}: {len(targets)} of {len(asked)} runs to do, the others are recorded",
        flush=True,
    )
    if not targets:
        return 0
    todo = [job for job in with_needs(targets) if job in stale or not finished(job)]
    for job in todo:
        if job.record() and not finished(job):
            job.out.rename(job.out.with_name(f"{job.out.name}.{job.record()['date'].replace(':', '')}"))
    try:
        start(with_needs(targets), targets, options)
    finally:
        written = set()
        for job in todo:
            if finished(job):
                write_record(job.result, job.record())
                written.add(job)
            elif written.intersection(job.needs):  # its record is of what is no longer there
                job.result.unlink(missing_ok=True)
    failed = [job for job in todo if not finished(job) and all(map(finished, job.needs))]
    if failed:
        raise UserError(
            f"{len(todo) - len(written)} of {len(todo)} runs are not done, because of "
            f"{', '.join(str(job.out) for job in failed)}; read output.txt there, fix the cause and run this again"
        )
    print(f"{len(written)} records written to {options.results}")
    return 0


if __name__ == "__main__":
    run(main)
