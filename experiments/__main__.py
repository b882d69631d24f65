"""Run a comparison: every variant with every seed, one record per run under results/.

    python -m experiments scratch food-11 --workers 2
    python -m experiments --list

Runs are ordinary commands of this project's scripts, share the cores among --workers of them, continue where
they were stopped, and are skipped where results/ already holds the record of the same command and photos.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from compression.command_line import UserError, available_cores, number, parser, run
from compression.files.atomic import write_bytes
from experiments.comparisons import EXPERIMENTS

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Job:
    """One run: its command with everything filled in, where it works, where its record goes, which folders it
    reads.
    """

    template: str
    command: tuple
    out: Path
    result: Path
    needs: tuple

    def recorded(self, fingerprints):
        """Whether results/ holds the record of this very command on these photos (paths may differ).

        An option that the recorded command left to its default counts as named where the record's settings
        tell the same value.
        """
        try:
            record = json.loads(self.result.read_text())
            script, *tokens = self.template.replace("{seed}", str(record["seed"])).split()
            program, *found = shlex.split(record["command"])
            settings, data = record.get("settings", {}), dict(record["data"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a damaged record is none
            return False
        for index in reversed(
            [index for index, token in enumerate(tokens) if token.startswith("--") and token not in found]
        ):
            if tokens[index + 1 : index + 2] == [
                str(settings.get(tokens[index].removeprefix("--").replace("-", "_")))
            ]:
                del tokens[index : index + 2]
        same = (
            Path(script).name == program
            and len(tokens) == len(found)
            and all("{" in token or token == value for token, value in zip(tokens, found))
        )
        return same and all(
            fingerprints[split] == value for split, value in data.items() if split in fingerprints
        )


def plan(name, data, runs, results, seeds=None):
    """The Jobs of an experiment, seed by seed. seeds: others than the experiment's."""
    experiment, jobs = EXPERIMENTS[name], []
    for seed in seeds or experiment.seeds:
        for variant, template in experiment.variants.items():
            needs = []

            def fill(match, seed=seed, variant=variant, needs=needs):
                place, _, other_seed = match[1].partition("@")
                # records keep the command, so no path of this machine is in it
                known = {
                    "data": data,
                    "seed": seed,
                    "out": runs / name / f"{variant}-{seed}",
                    "model": os.path.relpath(ROOT / "model.bin"),
                }
                if place in known:
                    return str(known[place])
                folder = runs / (place if "/" in place else f"{name}/{place}")
                needs.append(folder.with_name(f"{folder.name}-{other_seed or seed}"))
                return str(needs[-1])

            command = [re.sub(r"\{([^}]+)\}", fill, token) for token in template.split()]
            jobs.append(
                Job(
                    template,
                    tuple(command),
                    runs / name / f"{variant}-{seed}",
                    results / name / f"{variant}-seed{seed}.json",
                    tuple(needs),
                )
            )
    return jobs


def module_of(script):
    """How Python is told to run a script of this project wherever it was started."""
    return ["-m", script.removesuffix(".py").replace("/", ".")]


def perform(job, threads):
    """Run a job; returns (whether it went well, a line on what happened)."""
    for folder in job.needs:
        if not (folder / "record.json").exists():
            return (
                False,
                f"{job.result.name}: needs {folder}, which is not there; run the experiment "
                f"{folder.parent.name} first",
            )
    job.out.mkdir(parents=True, exist_ok=True)
    with open(job.out / "output.txt", "a") as log:
        command = [sys.executable, *module_of(job.command[0]), *job.command[1:]]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        status = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
    if status or not (job.out / "record.json").exists():
        return False, f"{job.result.name}: failed with status {status}, see {job.out / 'output.txt'}"
    write_bytes(job.result, (job.out / "record.json").read_bytes())
    return True, f"{job.result.name}: done"


def schedule(jobs, fingerprints, workers):
    """Run what is not recorded yet, what builds on that, and what that needs; yields (went well, line) as
    jobs end.

    Interrupted, it starts no more.
    """
    wanted = {}
    for job in jobs:  # what a run needs stands before it
        if not job.recorded(fingerprints) or any(folder in wanted for folder in job.needs):
            wanted[job.out] = job
    for job in reversed(jobs):
        if (
            any(job.out in other.needs for other in wanted.values())
            and not (job.out / "record.json").exists()
        ):
            wanted[job.out] = job
    threads, running = max(1, available_cores() // workers), {}
    with ThreadPoolExecutor(workers) as pool:

        def start(job):
            for folder in job.needs:  # submitted earlier, so never behind this one in the queue
                if folder in running and not running[folder].result()[0]:
                    return False, f"{job.result.name}: not started, because {folder} failed"
            return perform(job, threads)

        for job in jobs:
            if job.out in wanted:
                running[job.out] = pool.submit(start, job)
        try:
            for job in jobs:
                yield (
                    running[job.out].result()
                    if job.out in running
                    else (True, f"{job.result.name}: already recorded")
                )
        except KeyboardInterrupt:  # the runs under way got it too, and save themselves
            pool.shutdown(cancel_futures=True)
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
        "--runs", type=Path, default=Path("runs"), help="where the runs keep their checkpoints"
    )
    options.add_argument("--results", type=Path, default=ROOT / "results", help="where the records are kept")
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

    from dataset import (
        list_labelled,  # not before: the report reads the list of experiments where there is no torch
    )

    subset = EXPERIMENTS[options.experiment].subset
    fingerprints = (
        {}
        if subset
        else {split: list_labelled(options.data, split).fingerprint() for split in ("training", "validation")}
    )
    failed = 0
    jobs = plan(options.experiment, options.data, options.runs, options.results, options.seeds)
    for well, line in schedule(jobs, fingerprints, options.workers):
        failed += not well
        print(line, flush=True)
    if failed:
        raise UserError(f"{failed} runs failed; see above, fix the cause and run this again")
    return 0


if __name__ == "__main__":
    run(main)
