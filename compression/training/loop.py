"""The training loop that all training scripts share.

A script builds a network and its `Description`, loads the photos and calls `fit`; the loss is the only
thing that differs between them. In the run's folder `fit` keeps

    last.pt       after every epoch and on Ctrl-C or SIGTERM: everything that `--resume` needs
    best.pt       weights of the best epoch by validation accuracy (of their EMA when there is one)
    log.csv       a line per epoch
    record.json   at the end: settings, results, and where they come from

On a CPU a resumed run ends with bitwise the weights of an uninterrupted one. All random numbers come
from the seed: initialisation and dropout from torch's global generator, the order of the photos and
their views from generators seeded anew for every epoch.
"""

import contextlib
import shlex
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from compression import distributed
from compression.command_line import UserError
from compression.data.augmentation import AUGMENTATIONS
from compression.files.atomic import check_output, locked, write_text
from compression.files.records import provenance, write_record
from compression.networks.registry import count_parameters
from compression.training.evaluation import evaluate
from compression.training.losses import Batch, CrossEntropy, class_weights_of, mix
from compression.training.run_folder import Run


def pick_precision(name, device):
    """'auto' is bf16 where the hardware computes in it, fp16 on older GPUs, fp32 elsewhere.

    fp32 is what torch makes of it: on recent GPUs cuDNN's convolutions compute in TF32 by default.
    """
    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            raise UserError("precision=fp16 needs a GPU; use bf16 or fp32 on the CPU")
        return name
    if device.type == "cuda":
        with torch.cuda.device(device):  # which is what it asks
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # private functions of torch, which another version may lack: bool() is False
    computes_tiles = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    computes_vectors = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return "bf16" if computes_tiles or computes_vectors else "fp32"  # emulated bf16 is slower than fp32


class StopRequest:
    """Within the block, the first Ctrl-C or SIGTERM only sets `signal`; a second one acts as usual."""

    def __enter__(self):
        self.signal, self.previous = None, {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
                self.previous[number] = signal.signal(number, self._note)
        return self

    def agreed(self):
        """The signal that any process has got, the same in all of them; None without one."""
        return max(one or 0 for one in distributed.gather(self.signal)) or None

    def _note(self, number, frame):
        self.signal = number
        self._restore()

    def __exit__(self, *exception):
        self._restore()

    def _restore(self):
        while self.previous:
            signal.signal(*self.previous.popitem())


def check_run_folder(out, resume):
    """Raise UserError if no run can be started in the folder `out`, or continued there with `resume`."""
    held = next((name for name in ("last.pt", "best.pt", "record.json") if (out / name).exists()), None)
    if held and not resume:
        way_on = "add --resume to continue it or " if held == "last.pt" else ""
        raise UserError(f"{out} already holds a run ({held}); {way_on}choose another --out")
    check_output(out / "last.pt")
    if held not in (None, "last.pt"):
        raise UserError(f"{out} holds {held} and no last.pt to continue; choose another --out")


def fit(
    network, description, training, validation, settings, out, device, loss=None, resume=False, details=None
):
    """Train `network` and return the record that is written to `out`/record.json.

    training, validation: PhotoSets. out: the run's folder; None: a dry run of two batches, without files.
    loss: a `Loss`; CrossEntropy as the settings say by default. resume: continue from `out`/last.pt where
    there is one. details: further plain values for the record. Raises UserError for a folder in use or a loss
    that is not finite; SystemExit with 128 + signal after Ctrl-C or SIGTERM, even if the run is complete by
    then.
    """
    # few input shapes: views, photos, and their last batch; cuDNN chooses once for each
    torch.backends.cudnn.benchmark = True
    batch_size = min(settings.batch_size, len(training))
    if batch_size < 2 * distributed.SIZE:
        raise UserError(
            f"batches of {batch_size} of the {len(training)} training photo(s) are too small for "
            f"{distributed.SIZE} process(es): BN needs two photos in each; add photos, raise batch_size, or "
            "start fewer processes"
        )
    data = {"training": training.fingerprint, "validation": validation.fingerprint}
    loss = loss or CrossEntropy(settings.label_smoothing, class_weights_of(settings, training))
    run = Run(network, description, settings, len(training) // batch_size, device, loss, data)
    training, validation = training.to(device), validation.to(device)
    if not out:
        with StopRequest() as stop:
            row = train_epoch(run, training, validation, stop, steps=2)
        if stop.signal:
            raise SystemExit(128 + stop.signal)
        print(
            f"dry run of two steps is fine: loss {row['train_loss']:.3f}, {count_parameters(network):,} "
            "parameters; no run was written"
        )
        return row

    out = Path(out)
    best, last, finished = out / "best.pt", out / "last.pt", out / "record.json"
    check_run_folder(out, resume)
    distributed.wait()  # until all have looked into the folder
    with locked(out), StopRequest() as stop:
        distributed.wait()
        if last.exists():
            run.resume(last)
            newest_is_best = run.step == 0 and run.history and run.best() is run.history[-1]
            if newest_is_best and not finished.exists():  # it may have been killed before this
                run.save(best, complete=False)
            elif run.history and not best.exists():
                raise UserError(f"{out} has no best.pt any more; put it back, or choose another --out")
        if run.epoch == settings.last_epoch and finished.exists():
            print(f"the run in {out} is finished already")
        else:
            run.starts.append(provenance(device, settings.seed, data))
        while run.epoch < settings.last_epoch:
            started = time.perf_counter()
            row = train_epoch(run, training, validation, stop)
            if row is None:
                run.save(last, complete=True)
                distributed.wait()  # a process that leaves earlier takes the others with it
                print(f"stopped in epoch {run.epoch + 1} after {run.step} steps; continue with --resume")
                raise SystemExit(128 + stop.signal)
            run.end_epoch(row)
            if run.epoch == settings.keep_epoch:
                run.save(out / f"epoch{run.epoch}.pt", complete=False)
            # an older run's first rows may have fewer columns
            table = pd.DataFrame(run.history, columns=list(row))
            write_text(out / "log.csv", table.to_csv(index=False, lineterminator="\n"))
            run.save(last, complete=True)
            if run.best() is row:
                run.save(best, complete=False)
            seen = "" if row["train_accuracy"] is None else f"train {row['train_accuracy']:.4f}  "
            print(
                f"epoch {run.epoch:3}/{settings.epochs}  loss {row['train_loss']:.3f}  {seen}"
                f"validation {row['validation_accuracy']:.4f}  "
                f"balanced {row['validation_balanced_accuracy']:.4f}  best {run.best()[run.measure]:.4f}  "
                f"{time.perf_counter() - started:.1f} s",
                flush=True,
            )
        record = {
            **run.starts[0],
            "resumed": [{key: one[key] for key in ("commit", "date", "device")} for one in run.starts[1:]],
            "settings": asdict(settings),
            "model": description.to_dict(),
            "parameters": count_parameters(network),
            "photos": {"training": len(training), "validation": len(validation)},
            **(details or {}),
            "best": run.best(),
            "seconds": round(run.seconds, 1),
            "history": run.history,
        }
        write_record(finished, record)
        distributed.wait()  # until the files are there for all
        row = run.best()
        print(f"best {run.measure.replace('_', ' ')} {row[run.measure]:.4f} in epoch {row['epoch']}")
        if stopped := stop.agreed():  # after the last step: the run is complete, and nothing more must start
            raise SystemExit(128 + stopped)
    return record


def train_epoch(run, training, validation, stop, steps=None):
    """Train `run` for the rest of its epoch and evaluate it: the epoch's row of the log, or None if a stop
    was requested. steps: so many steps and batches of the evaluation only.
    """
    settings, preprocessing, device = run.settings, run.description.preprocessing, run.device
    augmentation = AUGMENTATIONS[settings.augment]
    started, batch_size = time.perf_counter(), min(settings.batch_size, len(training))
    seed = 1_000_003 * settings.seed
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed + run.epoch))
    if run.step == 0:
        run.views.manual_seed(seed + 500_000 + run.epoch)
    view = fixed = None
    if settings.views and augmentation:
        view = run.epoch % settings.views
        fixed = augmentation.draw(len(training), torch.Generator().manual_seed(seed + 900_000 + view))

    run.network.train()
    batches = order[: run.steps_per_epoch * batch_size].split(batch_size)[run.step : steps]
    title = f"epoch {run.epoch + 1}/{settings.epochs}"
    for positions in tqdm(batches, title, unit="step", disable=None, leave=False):
        batch = run.beside(lambda: draw_batch(run, training, positions, fixed, view))
        weight, stopped = run.agree(batch, stop)  # what one process decided alone would make the others wait
        run.train_step(batch, weight)
        stopped = stop.signal if distributed.SIZE == 1 else stopped
        if device.type == "cpu" or run.step % 50 == 0 or stopped:  # asking a GPU makes it wait
            run.check_finite(run.loss_sum)
        if stopped:
            stop.signal = stop.signal or stopped
            run.seconds += time.perf_counter() - started
            return None
    run.end_steps()
    run.check_finite(run.loss_sum)
    loss, accuracy, balanced = evaluate(run.evaluated, validation, preprocessing, device, batches=steps)
    run.check_finite(loss)
    run.seconds += time.perf_counter() - started
    return {
        "epoch": run.epoch + 1,
        "lr": run.schedule.get_last_lr()[0],
        "train_loss": run.loss_sum.item() / run.step,
        "train_accuracy": run.correct.item() / run.labelled.item() if run.labelled else None,
        "validation_loss": loss,
        "validation_accuracy": accuracy,
        "validation_balanced_accuracy": balanced,
        "seconds": round(run.seconds, 1),
    }


def draw_batch(run, training, positions, fixed, view):
    """This process's share of the batch of photos at `positions`, as random views, prepared for the loss.

    fixed: the parameters of every photo's view number `view`, or None for new ones. They are drawn for the
    whole batch, so that the views do not depend on the number of processes.
    """
    settings, preprocessing = run.settings, run.description.preprocessing
    augmentation = AUGMENTATIONS[settings.augment]
    if fixed:
        drawn = [values[positions] for values in fixed]
    else:
        drawn = augmentation.draw(len(positions), run.views) if augmentation else []
    if not settings.mixup:  # which needs the whole batch
        drawn, positions = [distributed.share(values) for values in drawn], distributed.share(positions)
    images, labels = training.batch(positions, run.device)
    if augmentation:
        images = augmentation.apply(images, preprocessing, drawn, settings.view_size)
    else:
        images = preprocessing.normalise(images)
    if settings.mixup:
        images, labels = mix(images, labels, len(run.description.class_names), settings.mixup, run.views)
        images, labels, positions = (distributed.share(values) for values in (images, labels, positions))
        images = images.contiguous(memory_format=torch.channels_last)
    return run.loss.prepare(Batch(images, labels, positions, view))


def quantize_command(folder):
    """The command line that makes a model file of the best.pt in a run's folder, in that folder."""
    return shlex.join(["python", "quantize.py", str(folder / "best.pt"), str(folder / "model.bin")])
