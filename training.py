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

import csv
import ctypes
import io
import math
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from augmentation import AUGMENTATIONS
from command_line import UserError
from files import check_output, read_torch, write_bytes, write_text
from losses import Batch, CrossEntropy, mix
from model_file import CHECKPOINT_FORMAT, VERSION, Description, to_bytes
from records import provenance, write_record


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of a run, besides the network and the photos."""

    epochs: int = 60
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 2e-3              # peak; sgd wants about 0.1
    weight_decay: float = 0.05    # not on BN and biases
    label_smoothing: float = 0.1
    ema: float = 0.998            # decay per step of the averaged weights; 0 = off
    augment: str = "standard"     # a name in augmentation.AUGMENTATIONS
    mixup: float = 0.0            # largest weight of a second photo mixed into each view; 0 = off
    views: int = 0                # views per photo that the epochs take turns with; 0 = new ones every epoch
    warmup: float = 0.05          # fraction of all steps
    clip: float = 5.0             # gradient norm; a safeguard that normal training does not reach
    precision: str = "fp32"       # fp32, bf16 or fp16 (autocast)
    seed: int = 0


def warmup_cosine(step, warmup_steps, total_steps):
    """Factor on the learning rate: linear from 0 up to 1 over the warm-up, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def pick_precision(name, device):
    """'auto' is bf16 where the hardware computes in it, fp16 on older GPUs, fp32 elsewhere."""
    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            raise UserError("--precision fp16 needs a GPU; use bf16 or fp32 on the CPU")
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"  # emulated bf16 is slower than fp32


def keep_freed_memory():
    """Tell glibc to keep freed memory for the next step instead of returning it to the kernel.

    A training step frees and allocates the same large tensors over and over; on the CPU the page faults of
    that cost a third of a StudentNet step (0.26 s -> 0.18 s, batch 64 at 128 px, 2 cores). No effect elsewhere.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)        # M_MMAP_THRESHOLD: no private mapping for blocks below 1 GB
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: do not shrink the heap
    except (OSError, AttributeError):
        pass


def parameter_groups(network, weight_decay):
    """Weight decay for weights of two dimensions and more; none for biases and BN."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [{"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
            {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0}]


def build_optimizer(network, settings):
    groups = parameter_groups(network, settings.weight_decay)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def _ema_update(decay):
    """Torch's EMA with a warm-up of the decay, so that the first steps are soon forgotten (as in TensorFlow's EMA)."""
    def update(averaged, current, count):
        get_ema_multi_avg_fn(min(decay, (1 + float(count)) / (10 + float(count))))(averaged, current, count)

    return update


@torch.no_grad()
def evaluate(network, photos, preprocessing, device, batch_size=256, batches=None):
    """(mean cross-entropy, accuracy) on a PhotoSet, in eval mode and fp32, without drawing a random number.

    batches: stop after so many. The network's mode is left as it was.
    """
    was_training = network.training
    network.eval()
    loss = correct = torch.zeros((), device=device)
    seen = 0
    for positions in list(torch.arange(len(photos)).split(batch_size))[:batches]:
        images, labels = photos.batch(positions, device)
        logits = network(preprocessing.normalise(images)).float()
        loss = loss + F.cross_entropy(logits, labels, reduction="sum")
        correct = correct + (logits.argmax(1) == labels).sum()
        seen += len(labels)
    network.train(was_training)
    return loss.item() / seen, correct.item() / seen


class StopRequest:
    """Within the block, the first Ctrl-C or SIGTERM only sets `signal`; a second one acts as usual."""

    def __enter__(self):
        self.signal, self.previous = None, {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: the caller handles signals
                break
        return self

    def _note(self, number, frame):
        self.signal = number
        self._restore()

    def _restore(self):
        while self.previous:
            signal.signal(*self.previous.popitem())

    def __exit__(self, *exception):
        self._restore()


class Run:
    """Everything that changes during training, and its saving and loading."""

    def __init__(self, network, description, settings, steps_per_epoch, device, loss_function=None):
        self.loss_function = loss_function or CrossEntropy(settings.label_smoothing)
        self.description, self.settings, self.device, self.steps_per_epoch = description, settings, device, steps_per_epoch
        self.network = network.to(device, memory_format=torch.channels_last)
        self.ema = AveragedModel(self.network, multi_avg_fn=_ema_update(settings.ema), use_buffers=True) if settings.ema else None
        self.optimizer = build_optimizer(self.network, settings)
        total = settings.epochs * steps_per_epoch
        self.schedule = LambdaLR(self.optimizer, lambda step: warmup_cosine(step, max(1, round(settings.warmup * total)), total))
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.views = torch.Generator()
        self.epoch, self.step, self.seconds = 0, 0, 0.0  # step: within the epoch
        self.loss_sum, self.correct = torch.zeros((), device=device), torch.zeros((), device=device)
        self.history = []

    @property
    def evaluated(self):
        """The network whose accuracy counts: the averaged one when there is one."""
        return self.ema.module if self.ema else self.network

    def best(self):
        """The history's row of the best epoch; the earliest one among equals."""
        return max(self.history, key=lambda row: row["validation_accuracy"]) if self.history else None

    def train_step(self, batch):
        """One optimiser step; returns nothing and does not wait for the GPU."""
        autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.settings.precision]
        with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            logits = self.network(batch.images)
        logits = logits.float()
        loss = self.loss_function(logits, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.ema:
            self.ema.update_parameters(self.network)
        self.loss_sum += loss.detach()
        labels = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(1)
        self.correct += (logits.argmax(1) == labels).sum()
        self.step += 1

    def check_finite(self):
        if not torch.isfinite(self.loss_sum):
            raise UserError(f"the loss is no longer finite in epoch {self.epoch + 1}, step {self.step}; lower --lr (now {self.settings.lr:g}) "
                            f"or use --precision fp32 (now {self.settings.precision}); checkpoints of earlier epochs are kept")

    def state_dict(self):
        """Plain values and tensors only, so that it loads with weights_only=True."""
        return {"settings": asdict(self.settings), "steps_per_epoch": self.steps_per_epoch,
                "network": self.network.state_dict(), "ema": self.ema.state_dict() if self.ema else None,
                "loss": self.loss_function.state_dict(), "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(), "scaler": self.scaler.state_dict(),
                "rng": {"torch": torch.get_rng_state(), "views": self.views.get_state(),
                        "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None},
                "epoch": self.epoch, "step": self.step, "seconds": self.seconds,
                "loss_sum": self.loss_sum, "correct": self.correct, "history": self.history}

    def load_state_dict(self, state):
        self.network.load_state_dict(state["network"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.loss_function.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"]["torch"])
        self.views.set_state(state["rng"]["views"])
        if self.device.type == "cuda" and state["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
        self.epoch, self.step, self.seconds, self.history = state["epoch"], state["step"], state["seconds"], state["history"]
        self.loss_sum, self.correct = state["loss_sum"].to(self.device), state["correct"].to(self.device)

    def save(self, path, complete):
        """Write a checkpoint atomically: complete = all that resuming needs, else only the evaluated weights."""
        weights = {key: value.detach().contiguous() for key, value in self.evaluated.state_dict().items()}
        checkpoint = {"format": CHECKPOINT_FORMAT, "version": VERSION, **self.description.to_dict(), "state_dict": weights}
        write_bytes(path, to_bytes({**checkpoint, "run": self.state_dict()} if complete else checkpoint))

    def resume(self, path):
        """Continue from a checkpoint; UserError if it belongs to a different run."""
        content = read_torch(path, "checkpoint")
        if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT or "run" not in content:
            raise UserError(f"{path} is no checkpoint of a training run; choose another --out")
        now = {**asdict(self.settings), "steps_per_epoch": self.steps_per_epoch, **self.description.to_dict()}
        before = {**content["run"]["settings"], "steps_per_epoch": content["run"]["steps_per_epoch"], **Description.from_dict(content, path).to_dict()}
        for key in now:
            if now[key] != before[key]:
                raise UserError(f"the run in {path} has {key} = {before[key]} and this one {now[key]}; repeat the first command with --resume, or choose another --out")
        self.load_state_dict(content["run"])


def fit(network, description, training, validation, settings, out, device, loss_function=None, resume=False, dry_run=False, details=None):
    """Train `network` and return the record that is written to `out`/record.json.

    training, validation: PhotoSets. loss_function(logits, Batch) -> scalar, with state_dict and
    load_state_dict; CrossEntropy with the settings' label smoothing by default.
    resume: continue from `out`/last.pt where there is one. dry_run: two batches of everything, no files.
    details: further plain values for the record. Raises UserError for a folder in use or a loss that is
    not finite; SystemExit with 128 + signal after Ctrl-C or SIGTERM.
    """
    out, preprocessing, augmentation = Path(out), description.preprocessing, AUGMENTATIONS[settings.augment]
    last = out / "last.pt"
    if device.type == "cpu":
        keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # one input shape: let cuDNN choose once
    batch_size = min(settings.batch_size, len(training))
    if batch_size < 2:
        raise UserError(f"{len(training)} training photo(s) with batches of {settings.batch_size} cannot be trained on: BN needs two photos a batch; add photos or raise --batch-size")
    training, validation = training.to(device), validation.to(device)
    run = Run(network, description, settings, len(training) // batch_size, device, loss_function)
    if not dry_run:
        if last.exists() and not resume:
            raise UserError(f"{out} already holds a run; add --resume to continue it or choose another --out")
        check_output(last)
        if resume and last.exists():
            run.resume(last)
    with StopRequest() as stop:
        while run.epoch < (1 if dry_run else settings.epochs):
            started = time.perf_counter()
            order = torch.randperm(len(training), generator=torch.Generator().manual_seed(1_000_003 * settings.seed + run.epoch))
            if run.step == 0:
                run.views.manual_seed(1_000_003 * settings.seed + run.epoch + 500_000)
            view = run.epoch % settings.views if settings.views and augmentation else None
            fixed = augmentation.draw(len(training), torch.Generator().manual_seed(1_000_003 * settings.seed + 900_000 + view)) if view is not None else None
            batches = order[: run.steps_per_epoch * batch_size].split(batch_size)[run.step : 2 if dry_run else None]
            run.network.train()
            for positions in tqdm(batches, desc=f"epoch {run.epoch + 1}/{settings.epochs}", unit="step", disable=None, leave=False):
                photos, labels = training.batch(positions, device)
                if fixed:
                    images = augmentation.apply(photos, preprocessing, [values[positions] for values in fixed])
                else:
                    images = augmentation(photos, preprocessing, run.views) if augmentation else preprocessing.normalise(photos)
                if settings.mixup:
                    images, labels = mix(images, labels, len(description.class_names), settings.mixup, run.views)
                run.train_step(Batch(images, labels, positions, view))
                if device.type == "cpu" or run.step % 50 == 0:  # asking a GPU makes it wait
                    run.check_finite()
                if stop.signal:
                    run.check_finite()
                    run.seconds += time.perf_counter() - started
                    break
            if stop.signal:
                if not dry_run:
                    run.save(last, complete=True)
                    print(f"stopped in epoch {run.epoch + 1} after {run.step} steps; continue with --resume")
                raise SystemExit(128 + stop.signal)
            run.check_finite()
            validation_loss, accuracy = evaluate(run.evaluated, validation, preprocessing, device, batches=2 if dry_run else None)
            if not math.isfinite(validation_loss):
                run.loss_sum += math.nan
                run.check_finite()
            run.seconds += time.perf_counter() - started
            row = {"epoch": run.epoch + 1, "lr": run.schedule.get_last_lr()[0], "train_loss": run.loss_sum.item() / run.step,
                   "train_accuracy": run.correct.item() / (run.step * batch_size),
                   "validation_loss": validation_loss, "validation_accuracy": accuracy, "seconds": round(run.seconds, 1)}
            if dry_run:
                print(f"dry run of {run.step} steps is fine: loss {row['train_loss']:.3f}, {sum(p.numel() for p in network.parameters()):,} parameters; nothing was written")
                return {"dry_run": True, **row}
            run.history.append(row)
            run.epoch, run.step = run.epoch + 1, 0
            run.loss_sum.zero_(), run.correct.zero_()
            if run.best() is row:
                run.save(out / "best.pt", complete=False)
            write_text(out / "log.csv", _log(run.history))
            run.save(last, complete=True)
            print(f"epoch {row['epoch']:3}/{settings.epochs}  loss {row['train_loss']:.3f}  train {row['train_accuracy']:.4f}  "
                  f"validation {accuracy:.4f}  best {run.best()['validation_accuracy']:.4f}  {time.perf_counter() - started:.1f} s", flush=True)

    data = {"training": training.fingerprint, "validation": validation.fingerprint}
    record = {**provenance(device, settings.seed, data), "settings": asdict(settings), "model": description.to_dict(),
              "parameters": sum(p.numel() for p in network.parameters()), "photos": {"training": len(training), "validation": len(validation)},
              **(details or {}), "best": run.best(), "seconds": round(run.seconds, 1), "history": run.history}
    write_record(out / "record.json", record)
    return record


def _log(history):
    """The history as CSV text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
