"""A training run: its settings, everything that changes during it, and how that is saved and resumed."""

import json
import math
import shlex
import signal
from dataclasses import asdict

import torch
from torch.nn.utils.parametrize import is_parametrized

from compression import distributed
from compression.command_line import UserError
from compression.data.classes import canonical
from compression.files.atomic import read_torch, write_bytes
from compression.files.description import Description
from compression.files.model_file import CHECKPOINT_FORMAT, VERSION, to_bytes
from compression.quantization.folding import NORMS
from compression.training.cuda_graph import CudaGraph
from compression.training.losses import CrossEntropy, tensors_of
from compression.training.recipe import (
    MovingAverage,
    Settings,
    autocast,
    build_optimizer,
    build_schedule,
    optimise,
)

COUNTS, SUMS = ("epoch", "step", "seconds", "starts"), ("loss_sum", "correct", "labelled")  # of a Run


def labelled_and_right(logits, labels):
    """Which photos of a batch have a label, and which of them are classified rightly: bool (N,), bool (N,).

    labels: as in `Batch`; of photos that were mixed, the one with the larger share counts.
    """
    if labels.ndim == 1:
        return labels >= 0, logits.argmax(1) == labels
    labelled = labels.sum(1) >= 0.5
    return labelled, labelled & (logits.argmax(1) == labels.argmax(1))


def write_checkpoint(path, description, weights, **further):
    """Write a checkpoint atomically: what `loading.load_model` reads, and `further` values and tensors."""
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    head = {"format": CHECKPOINT_FORMAT, "version": VERSION, **description.to_dict()}
    write_bytes(path, to_bytes({**head, "state_dict": weights, **further}))


@torch.no_grad()
def evaluated_state(network):
    """{"weights": state_dict}, the arguments of `write_checkpoint` for a network; where quantization-aware
    training rounds weights, they are rounded, under the plain network's names, and {"scales": {tensor name:
    (bits, scale)}} is added.
    """
    state = network.state_dict()
    weights = {name: value for name, value in state.items() if ".parametrizations." not in f".{name}"}
    scales = {}
    for layer, module in network.named_modules():
        if not is_parametrized(module):
            continue
        for tensor, (step,) in module.parametrizations.items():
            weights[f"{layer}.{tensor}"] = getattr(module, tensor)
            scales[f"{layer}.{tensor}"] = (step.bits, step.scale())
    return {"weights": weights, "scales": scales} if scales else {"weights": weights}


class Run:
    """Everything that changes during training, with its saving and loading.

    data: fingerprints of the photos, which must be the same when the run is resumed.
    """

    def __init__(self, network, description, settings, steps_per_epoch, device, loss=None, data=None):
        self.loss = loss or CrossEntropy(settings.label_smoothing)
        self.data, self.measure = data or {}, f"validation_{settings.measure}"  # which picks the best epoch
        self.description, self.settings = description, settings
        self.device, self.steps_per_epoch = device, steps_per_epoch
        network = network.to(device, memory_format=torch.channels_last)
        norms = [module for module in network.modules() if isinstance(module, NORMS)]
        self.gammas = [norm.weight for norm in norms if settings.gamma_l1]
        self.network = distributed.synchronised(network, device)
        self.parallel = distributed.parallel(self.network, device)
        self.ema = MovingAverage(self.network) if settings.ema else None
        self.optimizer = build_optimizer(self.network, settings)
        self.schedule = build_schedule(self.optimizer, settings, steps_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.views = torch.Generator()
        self.stream = self.graph = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # in which the next batch is made
            if distributed.SIZE == 1:
                self.graph = CudaGraph(self.compute, self.optimizer, device)
        self.epoch, self.step, self.seconds = 0, 0, 0.0  # step: within the epoch
        # of this epoch
        self.loss_sum, self.correct, self.labelled = (torch.zeros((), device=device) for _ in range(3))
        self.history, self.starts = [], []  # starts: the provenance of every process that worked on this run

    @property
    def evaluated(self):
        """The network whose accuracy counts: the averaged one when there is one."""
        return self.ema.module if self.ema else self.network

    def best(self):
        """The history's row of the best epoch; the earliest one among equals."""
        return max(self.history, key=lambda row: row[self.measure])

    def agree(self, batch, stop):
        """(share of this process in the batch's mean loss, a signal that any process has got)."""
        if distributed.SIZE == 1:
            return 1.0, None
        own = self.loss.weight_of(batch)
        total, stopped = distributed.total([own, stop.signal or 0]).tolist()
        return own / total, int(stopped > 0) and (stop.signal or signal.SIGTERM)

    def beside(self, make):
        """The Batch that `make()` returns. A GPU makes it in a stream of its own, while it still computes the
        steps before: a teacher that waits for the GPU does not wait for these.
        """
        if not self.stream:
            return make()
        with torch.cuda.stream(self.stream):
            batch = make()
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for values in tensors_of(batch):
            if values.is_cuda:
                values.record_stream(current)
        return batch

    def train_step(self, batch, weight=1.0):
        """One optimiser step; returns nothing and does not wait for the GPU.

        batch: as the loss prepared it. weight: share of this process in the mean loss of the batch.
        """
        if self.graph:
            self.graph(batch)
        else:
            self.compute(batch, weight)
        self.schedule.step()
        if self.ema:
            done = self.epoch * self.steps_per_epoch + self.step
            # a warm-up, so that the first steps are soon forgotten
            self.ema.update(min(self.settings.ema, (1 + done) / (10 + done)))
        self.step += 1

    def compute(self, batch, weight=1.0):
        """The part of a step that is the same for every batch: forward, backward, optimizer, sums."""
        with autocast(self.settings.precision, self.device):
            logits = self.parallel(batch.images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # float64 stays
        loss = weight * self.loss(logits, batch)
        step = self.network, self.optimizer, self.scaler, self.settings, self.gammas
        optimise(distributed.SIZE * loss, *step)
        self.loss_sum += loss.detach()
        labelled, right = labelled_and_right(logits, batch.labels)
        self.labelled += labelled.sum()
        self.correct += right.sum()

    def end_steps(self):
        """Sum up what all processes have counted in this epoch, and give them rank 0's BN statistics."""
        if distributed.SIZE > 1:
            own = [getattr(self, name) for name in SUMS]
            for one, total in zip(own, distributed.total([one.item() for one in own])):
                one.fill_(total)
            distributed.spread(self.evaluated.buffers())

    def check_finite(self, loss):
        """Raise UserError if a loss of this epoch, or their sum, is NaN or infinite."""
        if not math.isfinite(loss):
            rate, precision = self.settings.lr, self.settings.precision
            way_on = f"lr={rate / 4:g}" + ("" if precision == "fp32" else " or precision=fp32")
            raise UserError(
                f"the loss is no longer finite in epoch {self.epoch + 1}, step {self.step}, with lr={rate:g} "
                f"precision={precision}; start again with --recipe {way_on} and another --out"
            )

    def end_epoch(self, row):
        """Note the epoch's row of the log and go on to the next epoch."""
        self.history.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        for name in SUMS:
            getattr(self, name).zero_()

    def parts(self):
        """{key in a checkpoint: what has a state of its own, or None}."""
        names = ("network", "ema", "loss", "optimizer", "schedule", "scaler")
        return {name: getattr(self, name) for name in names}

    def state_dict(self):
        """Plain values and tensors only, so that it loads with weights_only=True."""
        on_gpu = self.device.type == "cuda"
        return {
            "settings": asdict(self.settings),
            "steps_per_epoch": self.steps_per_epoch,
            "data": self.data,
            **{key: None if part is None else part.state_dict() for key, part in self.parts().items()},
            "rng": {
                "torch": distributed.gather(torch.get_rng_state()),  # a state for every process
                "views": self.views.get_state(),
                "cuda": distributed.gather(torch.cuda.get_rng_state(self.device)) if on_gpu else None,
            },
            **{name: getattr(self, name) for name in COUNTS + SUMS},
            # as text: thousands of epochs would be more values than `read_torch` takes
            "history": json.dumps(self.history),
        }

    def load_state_dict(self, state):
        """The inverse of `state_dict`, for a run with the same settings."""
        for key, part in self.parts().items():
            if part is not None:
                part.load_state_dict(state[key])
        self.views.set_state(state["rng"]["views"])
        states = state["rng"]["torch"]
        if len(states) == distributed.SIZE:
            torch.set_rng_state(states[distributed.RANK])
            if self.device.type == "cuda" and state["rng"]["cuda"] is not None:
                torch.cuda.set_rng_state(state["rng"]["cuda"][distributed.RANK], self.device)
        else:
            torch.manual_seed(1_000_003 * self.settings.seed + distributed.RANK)
            print(
                f"note: the run was saved by {len(states)} process(es) and goes on with {distributed.SIZE}, "
                "so its weights will not be bitwise those of an uninterrupted run"
            )
        for name in COUNTS:
            setattr(self, name, state[name])
        self.history = json.loads(state["history"])
        for name in SUMS:
            setattr(self, name, state[name].to(self.device))

    def save(self, path, complete):
        """Write a checkpoint atomically: complete = all that resuming needs, else the evaluated weights."""
        state = {"run": self.state_dict()} if complete else {}
        write_checkpoint(path, self.description, **evaluated_state(self.evaluated), **state)

    def resume(self, path):
        """Continue from a checkpoint; UserError if it is damaged or belongs to a different run."""
        best, advice = path.parent / "best.pt", "choose another --out"
        trains = str(self.description.training.get("script")).startswith("train_")  # has --init
        if trains and best.exists():
            advice += f", and --init {shlex.quote(str(best))} to start from there"
        content = read_torch(path, "checkpoint", advice)
        kind = [content.get(key) for key in ("format", "version")] if isinstance(content, dict) else None
        if kind != [CHECKPOINT_FORMAT, VERSION] or "run" not in content:
            raise UserError(f"{path} is no checkpoint of a run that can be continued; choose another --out")
        run, keys = content["run"], ("settings", "data", "steps_per_epoch")
        before = Description.from_dict(content, path).to_dict() | {key: run.get(key) for key in keys}
        before["settings"] = asdict(Settings()) | dict(before["settings"] or {})  # of an older version
        now = self.description.to_dict() | {"settings": asdict(self.settings)}
        now |= {"data": self.data, "steps_per_epoch": self.steps_per_epoch}
        if list(map(canonical, before["class_names"])) == list(map(canonical, now["class_names"])):
            before["class_names"] = now["class_names"]  # of folders: another spelling of Food-11's own
        epochs, wanted = before["settings"]["epochs"], self.settings.epochs
        if trains and run.get("epoch") == epochs != wanted:
            raise UserError(
                f"the run in {path.parent} has finished its {epochs} epochs; to train on, start a "
                f"new run from it: --init {shlex.quote(str(best))} --epochs {wanted} --out NEW"
            )
        check_same(before, now, path)
        try:
            self.load_state_dict(run)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {str(error)[:100]}"
            raise UserError(f"{path} cannot be continued ({reason}); choose another --out") from None


def check_same(before, now, path):
    """UserError if the run saved in `path` was started with other settings; both are (nested) dicts."""
    before, now = _flat(before), _flat(now)
    first = "training.script", "settings.qat_bits"  # from which other differences follow
    for key in (*first, *sorted(now.keys() | before.keys())):
        if now.get(key) != before.get(key):
            raise UserError(
                f"{key.removeprefix('settings.')} was {before.get(key)} in the saved run {path} but is "
                f"{now.get(key)} now; repeat the first command with --resume, or choose another --out"
            )


def _flat(values, prefix=""):
    """Nested dicts as one with dotted keys."""
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
