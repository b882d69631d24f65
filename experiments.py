"""Run a comparison: every variant with every seed, one record per run under results/.

    python experiments.py scratch food-11 --workers 2
    python experiments.py --list

Runs are ordinary commands of the training scripts, share the cores among --workers of them, continue
where they were stopped, and are skipped where results/ already holds their record for the same photos.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from command_line import UserError, available_cores, number, parser, run

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Experiment:
    """A question, the options all runs share, and the variants: name -> further options of train_student.py."""

    question: str
    shared: str
    variants: dict
    seeds: tuple = (0, 1, 2)


EXPERIMENTS = {
    "scratch": Experiment(
        "from scratch, equal epochs: the course's student against our network, also in no more bytes than the student's", "--size 96 --epochs 12",
        {"student": "--network student", "residual6_narrow": "--network residual6 --set hidden=96,160,160,256,256,256", "residual6": "--network residual6"}),
}


def train(name, variant, seed, data, threads, runs, results):
    """Train one variant with one seed unless its record exists; returns (whether it went well, a line on what happened)."""
    experiment = EXPERIMENTS[name]
    out, result = runs / name / f"{variant}-{seed}", results / name / f"{variant}-seed{seed}.json"
    options = shlex.split(f"{experiment.shared} {experiment.variants[variant]} --seed {seed}")
    if result.exists():
        from dataset import list_labelled

        recorded = json.loads(result.read_text())
        if shlex.join(options) in recorded["command"] and recorded["data"]["training"] == list_labelled(data, "training").fingerprint():
            return True, f"{result.name}: already recorded"
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "train_student.py"), str(data), *options, "--out", str(out), "--resume"]
    with open(out / "output.txt", "a") as log:
        status = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(threads)}).returncode
    if status:
        return False, f"{result.name}: failed with status {status}, see {out / 'output.txt'}"
    result.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / "record.json", result)
    return True, f"{result.name}: {json.loads(result.read_text())['best']['validation_accuracy']:.4f}"


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("experiment", nargs="?", help="its name")
    options.add_argument("data", type=Path, nargs="?", help="root that holds training/ and validation/")
    options.add_argument("--list", action="store_true", help="list the experiments")
    options.add_argument("--workers", type=number(int, 1), default=1, help="runs at once; small networks gain from one run per core")
    options.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs keep their checkpoints")
    options.add_argument("--results", type=Path, default=HERE / "results", help="where the records are kept")
    options = options.parse_args(argv)
    if options.list:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name}: {experiment.question} ({', '.join(experiment.variants)}; {len(experiment.seeds)} seeds; {experiment.shared})")
        return 0
    if options.experiment not in EXPERIMENTS or not options.data:
        raise UserError(f"name an experiment ({', '.join(EXPERIMENTS)}) and the data directory; --list describes them")

    experiment = EXPERIMENTS[options.experiment]
    threads = max(1, available_cores() // options.workers)
    with ThreadPoolExecutor(options.workers) as pool:
        jobs = [pool.submit(train, options.experiment, variant, seed, options.data, threads, options.runs, options.results)
                for seed in experiment.seeds for variant in experiment.variants]
        failed = 0
        try:
            for job in jobs:
                well, line = job.result()
                failed += not well
                print(line, flush=True)
        except KeyboardInterrupt:  # the runs under way got it too, and save themselves
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        raise UserError(f"{failed} runs failed; see above, mend the cause and run this again")
    return 0


if __name__ == "__main__":
    run(main)
