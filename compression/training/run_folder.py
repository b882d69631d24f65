"""A training run: its settings, everything that changes during it, and how that is saved and resumed."""

import json
import math
import shlex
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compression.command_line import UserError
from compression.data.classes import canonical
from compression.files.atomic import read_torch, write_bytes
from compression.files.model_file import CHECKPOINT_FORMAT, VERSION, Description, to_bytes
from compression.training.losses import CrossEntropy

AUTOCAST = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}  # precision -> what forward passes are computed in


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of a run, besides the network and the photos."""

    epochs: int = 60
    batch_size: int = 64
    optimizer: str = "adamw"
    schedule: str = "cosine"  # of the learning rate: "cosine" after a warm-up, or "constant"
    lr: float = 2e-3  # peak; sgd wants about 0.1
    weight_decay: float = 0.05  # not on BN and biases
    label_smoothing: float = 0.1
    ema: float = 0.998  # decay per step of the averaged weights; 0 = off
    augment: str = "standard"  # a name in augmentation.AUGMENTATIONS
    mixup: float = 0.0  # largest weight of a second photo mixed into each view; 0 = off
    view_size: int = 0  # pixels of the random views; 0 = the input size
    views: int = 0  # views per photo that the epochs take turns with; 0 = new ones every epoch
    warmup: float = 0.05  # fraction of all steps
    gamma_l1: float = (
        0.0  # weight of sum |gamma| over all BNs, which drives unneeded channels to zero (Liu et al. 2017)
    )
    clip: float = 5.0  # gradient norm; a safeguard that normal training does not reach
    class_weights: str = "none"  # of the labels: "none", or "balanced" by the photos per class
    precision: str = "fp32"  # fp32, bf16 or fp16 (autocast)
    seed: int = 0


def warmup_cosine(step, warmup_steps, total_steps):
    """Factor on the learning rate: linear from 0 up to 1 over the warm-up, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(network, weight_decay):
    """Weight decay for weights of two dimensions and more; none for biases and BN."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {
            "params": [parameter for parameter in parameters if parameter.ndim >= 2],
            "weight_decay": weight_decay,
        },
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(network, settings):
    """AdamW, or SGD with Nesterov momentum 0.9, fused: one pass over all parameters."""
    groups = parameter_groups(network, settings.weight_decay)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def labelled_and_right(logits, labels):
    """Which photos of a batch have a label, and which of them are classified rightly: bool (N,), bool (N,).

    labels: as in `Batch`; of photos that were mixed, the one with the larger share counts.
    """
    if labels.ndim == 1:
        return labels >= 0, logits.argmax(1) == labels
    labelled = labels.sum(1) >= 0.5
    return labelled, labelled & (logits.argmax(1) == labels.argmax(1))


def write_checkpoint(path, description, weights, **further):
    """Write a checkpoint atomically: what `model_file.load_model` reads, and `further` plain values and
    tensors.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write_bytes(
        path,
        to_bytes(
            {
                "format": CHECKPOINT_FORMAT,
                "version": VERSION,
                **description.to_dict(),
                "state_dict": weights,
                **further,
            }
        ),
    )


def plain_state(network):
    """What `write_checkpoint` is to know of the evaluated network."""
    return {"weights": network.state_dict()}


@torch.no_grad()
def average_weights(averaged, network, decay):
    """One step of the exponential moving average of weights and buffers, into an `AveragedModel`; the first
    one copies them.

    What its `update_parameters` does with `get_ema_multi_avg_fn`, except that the counter stays on the CPU:
    copying that to the GPU, where nothing needs it, would wait for the GPU in every step.
    """
    update = get_ema_multi_avg_fn(decay if averaged.n_averaged > 0 else 0.0)
    groups = {}
    for ours, theirs in zip(
        *([*model.parameters(), *model.buffers()] for model in (averaged.module, network)), strict=True
    ):
        groups.setdefault(ours.dtype, ([], []))
        groups[ours.dtype][0].append(ours), groups[ours.dtype][1].append(theirs)
    for ours, theirs in groups.values():
        update(ours, theirs, None)
    averaged.n_averaged += 1


class Run:
    """Everything that changes during training, with its saving and loading.

    data: fingerprints of the photos, which must be the same when the run is resumed. export: replaces
    `plain_state` for a network that is trained in another form than it is used in.
    """

    def __init__(
        self,
        network,
        description,
        settings,
        steps_per_epoch,
        device,
        loss_function=None,
        data=None,
        export=plain_state,
    ):
        self.loss_function = loss_function or CrossEntropy(settings.label_smoothing)
        self.data, self.export = data or {}, export
        self.description, self.settings, self.device, self.steps_per_epoch = (
            description,
            settings,
            device,
            steps_per_epoch,
        )
        self.network = network.to(device, memory_format=torch.channels_last)
        self.ema = AveragedModel(self.network, use_buffers=True) if settings.ema else None
        self.optimizer = build_optimizer(self.network, settings)
        norms = [
            module
            for module in self.network.modules()
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
        ]
        self.gammas = [norm.weight for norm in norms] if settings.gamma_l1 else []
        total = settings.epochs * steps_per_epoch
        warmup = max(1, round(settings.warmup * total))
        constant = settings.schedule == "constant"
        self.schedule = LambdaLR(
            self.optimizer, lambda step: 1.0 if constant else warmup_cosine(step, warmup, total)
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.views = torch.Generator()
        self.epoch, self.step, self.seconds = 0, 0, 0.0  # step: within the epoch
        self.loss_sum, self.correct, self.labelled = (
            torch.zeros((), device=device) for _ in range(3)
        )  # of this epoch
        self.history, self.starts = [], []  # starts: the provenance of every process that worked on this run

    @property
    def evaluated(self):
        """The network whose accuracy counts: the averaged one when there is one."""
        return self.ema.module if self.ema else self.network

    def best(self):
        """The history's row of the best epoch; the earliest one among equals."""
        return max(self.history, key=lambda row: row[self.measure]) if self.history else None

    @property
    def measure(self):
        """Which column of the history picks the best epoch."""
        return (
            "validation_balanced_accuracy"
            if self.settings.class_weights == "balanced"
            else "validation_accuracy"
        )

    def train_step(self, batch):
        """One optimiser step; returns nothing and does not wait for the GPU."""
        autocast = AUTOCAST[self.settings.precision]
        with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            logits = self.network(batch.images)
        logits = logits.float()
        loss = self.loss_function(logits, batch)
        # the penalty is not in the loss that is logged: runs stay comparable
        penalty = self.settings.gamma_l1 * sum(gamma.abs().sum() for gamma in self.gammas)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss + penalty).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.ema:
            done = self.epoch * self.steps_per_epoch + self.step
            decay = min(
                self.settings.ema, (1 + done) / (10 + done)
            )  # a warm-up, so that the first steps are soon forgotten
            average_weights(self.ema, self.network, decay)
        self.loss_sum += loss.detach()
        labelled, right = labelled_and_right(logits, batch.labels)
        self.labelled += labelled.sum()
        self.correct += right.sum()
        self.step += 1

    def check_finite(self):
        """Raise UserError if the sum of the epoch's losses is NaN or infinite."""
        if not torch.isfinite(self.loss_sum):
            or_fp32 = (
                ""
                if self.settings.precision == "fp32"
                else f" or with --precision fp32 (now {self.settings.precision})"
            )
            raise UserError(
                f"the loss is no longer finite in epoch {self.epoch + 1}, step {self.step}; start again "
                "with a lower --lr "
                f"(now {self.settings.lr:g}){or_fp32}, and with a new --out: the old one keeps its "
                "checkpoints"
            )

    def end_epoch(self, row):
        """Note the epoch's row of the log and go on to the next epoch."""
        self.history.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum.zero_(), self.correct.zero_(), self.labelled.zero_()

    def state_dict(self):
        """Plain values and tensors only, so that it loads with weights_only=True."""
        return {
            "settings": asdict(self.settings),
            "steps_per_epoch": self.steps_per_epoch,
            "data": self.data,
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "loss": self.loss_function.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": {
                "torch": torch.get_rng_state(),
                "views": self.views.get_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            },
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "starts": self.starts,
            "loss_sum": self.loss_sum,
            "correct": self.correct,
            "labelled": self.labelled,
            "history": json.dumps(self.history),
        }  # as text: thousands of epochs would be more values than `read_torch` takes

    def load_state_dict(self, state):
        """The inverse of `state_dict`, for a run with the same settings."""
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
        for name in ("epoch", "step", "seconds", "starts"):
            setattr(self, name, state[name])
        history = state["history"]  # an older checkpoint has it as values
        self.history = json.loads(history) if isinstance(history, str) else history
        # an older checkpoint does not say how many were labelled: as if all, which is what it counted with
        labelled = state.get("labelled", torch.tensor(float(state["step"] * self.settings.batch_size)))
        self.loss_sum, self.correct, self.labelled = (
            value.to(self.device) for value in (state["loss_sum"], state["correct"], labelled)
        )

    def save(self, path, complete):
        """Write a checkpoint atomically: complete = all that resuming needs, else the evaluated weights."""
        write_checkpoint(
            path,
            self.description,
            **self.export(self.evaluated),
            **({"run": self.state_dict()} if complete else {}),
        )

    def resume(self, path):
        """Continue from a checkpoint; UserError if it is damaged or belongs to a different run."""
        content = read_torch(path, "checkpoint")
        if (
            not isinstance(content, dict)
            or content.get("format") != CHECKPOINT_FORMAT
            or content.get("version") != VERSION
            or "run" not in content
        ):
            raise UserError(
                f"{path} is no checkpoint of a training run that this program can continue; choose another "
                "--out"
            )
        # unless the run knows better: it may be older than these settings
        before = {"settings.gamma_l1": 0.0, "settings.schedule": "cosine", "settings.class_weights": "none"}
        before |= _flat(
            {
                **Description.from_dict(content, path).to_dict(),
                **{key: content["run"].get(key) for key in ("settings", "data", "steps_per_epoch")},
            }
        )
        now = _flat(
            {
                **self.description.to_dict(),
                "settings": asdict(self.settings),
                "data": self.data,
                "steps_per_epoch": self.steps_per_epoch,
            }
        )
        if list(map(canonical, before["class_names"])) == list(map(canonical, now["class_names"])):
            before["class_names"] = now[
                "class_names"
            ]  # an older run on folders has their spelling, not Food-11's own
        for key in sorted(now.keys() | before.keys()):
            if now.get(key) != before.get(key):
                name = key.removeprefix("settings.")
                by_training_script = str(self.description.training.get("script")).startswith(
                    "train_"
                )  # those that have --init
                if (
                    key == "settings.epochs"
                    and content["run"].get("epoch") == before[key]
                    and by_training_script
                ):
                    raise UserError(
                        f"the run in {path.parent} has finished its {before[key]} epochs; to train on, "
                        "start a new run from it: "
                        f"--init {shlex.quote(str(path.parent / 'best.pt'))} --epochs {now[key]} --out NEW"
                    )
                raise UserError(
                    f"the run in {path} was started with {name} = {before.get(key)} and this command means "
                    f"{now.get(key)}; "
                    "repeat the first command with --resume, or choose another --out"
                )
        try:
            self.load_state_dict(content["run"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {str(error)[:100]}"
            raise UserError(
                f"the run in {path} cannot be continued ({reason}); choose another --out"
            ) from None


def _flat(values, prefix=""):
    """Nested dicts as one with dotted keys."""
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
