"""How a network is trained: every hyperparameter with its default and limits, the optimizer, the learning
rate schedule, the exponential moving average (EMA) of the weights, and the optimizer step.

To add a hyperparameter, add a field to `Settings`: `--recipe KEY=VALUE` of all training scripts then accepts
it.
"""

import dataclasses
import difflib
import math
import sys
import textwrap
from argparse import ArgumentTypeError
from dataclasses import dataclass

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compression import distributed
from compression.command_line import UserError, number
from compression.data.augmentation import AUGMENTATIONS

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # data type of the forward pass
# Defaults of a script that differ from those of Settings; "sgd" applies wherever that optimizer is chosen.
DEFAULTS = {
    "train_student.py": {},
    "train_kd.py": {"epochs": 120, "lr": 5e-3, "label_smoothing": 0.0},
    "prune.py": {"epochs": 20},
    "qat": {"epochs": 15, "lr": 5e-4},
    "sgd": {"lr": 0.1, "weight_decay": 5e-4},
}


def setting(default, check, text):
    """A field of a recipe: its default, the argparse type that converts and checks its text, and its help."""
    return dataclasses.field(default=default, metadata={"check": check, "help": text})


def one_of(*values):
    """An argparse type: one of these words."""

    def check(text):
        if text not in values:
            raise ArgumentTypeError(f"{text!r} is none of {', '.join(values)}")
        return text

    return check


def autocast(precision, device):
    """The context in which a network computes in this precision."""
    return torch.autocast(device.type, AUTOCAST[precision], enabled=precision != "fp32")


PIXELS, POSITIVE = number(int, 16, 4096), number(float, 0, open_low=True)


@dataclass(frozen=True)
class Settings:
    """All settings that decide the result of a run, besides the network and the photos."""

    epochs: int = 60
    batch_size: int = setting(64, number(int, 2, 100_000), "photos per step")
    optimizer: str = setting("adamw", one_of("adamw", "sgd"), "adamw, or sgd with Nesterov momentum 0.9")
    schedule: str = setting(
        "cosine", one_of("cosine", "constant"), "of the learning rate; cosine: warm-up, then to 0"
    )
    lr: float = setting(2e-3, POSITIVE, "peak learning rate (default with QAT: 0.0005; with sgd: 0.1)")
    weight_decay: float = setting(0.05, number(float, 0), "not applied to BN and biases")
    label_smoothing: float = setting(0.1, number(float, 0, 0.99), "probability spread over all classes")
    ema: float = setting(0.998, number(float, 0, 0.99999), "decay per step of the weights' EMA; 0 = off")
    augment: str = setting("standard", one_of(*AUGMENTATIONS), f"augmentation: {', '.join(AUGMENTATIONS)}")
    mixup: float = setting(0.0, number(float, 0, 0.5), "largest share of another photo mixed into a view")
    view_size: int = setting(
        0,
        lambda text: 0 if text == "0" else PIXELS(text),
        "size of the random views in pixels; 0 = the input size, or the view size of the network "
        "that training starts from. Crops enlarge objects: views of 3/4 of the input size show them as large "
        "as whole photos do, at half the cost (Touvron et al. 2019)",
    )
    views: int = setting(
        0,
        number(int, 0, 1000),
        "fixed views per photo, one per epoch in turn, so that teacher outputs can be cached; 0 = new views "
        "every epoch",
    )
    warmup: float = setting(0.05, number(float, 0, 1), "share of all steps used for learning rate warm-up")
    gamma_l1: float = setting(
        0.0,
        number(float, 0),
        "L1 penalty on BN gammas, by which prune.py ranks channels (Liu et al. 2017); try 0.0001",
    )
    clip: float = setting(5.0, POSITIVE, "largest gradient norm")
    class_weights: str = setting(
        "none",
        one_of("none", "balanced"),
        "balanced: weight classes by n / (classes * photos of the class), and pick the best epoch by "
        "balanced accuracy",
    )
    keep_epoch: int = setting(0, number(int, 0), "also save epoch N as epochN.pt, for prune.py --mode rewind")
    stop_epoch: int = setting(
        0,
        number(int, 0),
        "end after this epoch, before the learning rate is 0, so that QAT can go on; 0 = after all epochs",
    )
    qat_bits: int = 0  # bits of the weights in quantization-aware training (see qat.py); 0 = off
    qat_overrides: dict = dataclasses.field(default_factory=dict)  # layer -> other bits
    qat_granularity: str = setting(
        "channel", one_of("tensor", "channel"), "with --qat-bits: one scale per layer or per output channel"
    )
    precision: str = setting(
        "fp32", one_of("auto", "fp32", "bf16", "fp16"), "auto: bf16 or fp16 where faster"
    )
    seed: int = 0

    @property
    def last_epoch(self):
        """The epoch after which the training ends."""
        return self.stop_epoch or self.epochs

    @property
    def measure(self):
        """Which accuracy on validation photos picks the best epoch."""
        return "balanced_accuracy" if self.class_weights == "balanced" else "accuracy"


def defaults_of(script, qat=False, chosen=None):
    """The default settings of a script. chosen: the given settings, since sgd has other defaults."""
    sgd = DEFAULTS["sgd"] if (chosen or {}).get("optimizer") == "sgd" else {}
    return {"precision": "auto", **DEFAULTS[script], **(DEFAULTS["qat"] if qat else {}), **sgd}


def recipe_fields(*groups, without=()):
    """{key: field} of all fields of these dataclasses that a command line can set."""
    fields = (field for group in groups for field in dataclasses.fields(group))
    return {field.name: field for field in fields if field.metadata and field.name not in without}


def parse_recipe(texts, fields):
    """`--recipe` options: ["lr=0.005", "augment=medium"] -> {"lr": 0.005, "augment": "medium"}.

    fields: from `recipe_fields`. If a key is given twice, the last value is used. Raises UserError for an
    unknown key, naming the nearest one, and for a value outside its limits.
    """
    chosen = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if key not in fields or not equals:
            near = difflib.get_close_matches(key, fields, 1)
            what = f"there is no {key} in --recipe" if equals else f"--recipe {text} is not KEY=VALUE"
            hint = f"write {near[0]}=VALUE" if near else "--recipe help lists the keys"
            raise UserError(f"{what}; {hint}")
        try:
            chosen[key] = fields[key].metadata["check"](value)
        except ArgumentTypeError as error:
            raise UserError(f"--recipe {text}: {error}; --recipe help describes all keys") from None
    return chosen


def recipe_help(fields, defaults):
    """The table of all keys with their defaults."""
    lines, width = ["--recipe KEY=VALUE [KEY=VALUE ...], with defaults:"], max(map(len, fields)) + 12
    for key, field in fields.items():
        default = defaults.get(key, field.default)
        name = f"  {key}={'' if default is None else default}".ljust(width)
        lines.append(textwrap.fill(name + field.metadata["help"], 100, subsequent_indent=" " * width))
    return "\n".join(lines)


def add_recipe(parser, script, *groups, without=()):
    """`--recipe`, for the fields of Settings and of these dataclasses; see `read_recipe`."""
    text = "other training settings, e.g. lr=0.005 augment=medium; `--recipe help` lists all"
    parser.add_argument("--recipe", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text)
    parser.set_defaults(script=script, recipe_fields=recipe_fields(Settings, *groups, without=without))


def read_recipe(parser, argv=None):
    """The parsed options of a parser with `add_recipe`: every key of the recipe is an attribute, and `chosen`
    holds the keys that were given, with `epochs` if --epochs was.

    `--recipe help` prints the table and exits; it needs no other argument.
    """
    words = sys.argv[1:] if argv is None else list(map(str, argv))
    known_fields = parser.get_default("recipe_fields")
    if ("--recipe", "help") in zip(words, words[1:]) or "--recipe=help" in words:
        print(recipe_help(known_fields, defaults_of(parser.get_default("script"))))
        raise SystemExit(0)
    for word in words:
        flag = word.partition("=")[0]
        key = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and key in known_fields:
            raise UserError(f"{flag} is a setting of the recipe; write --recipe {key}=VALUE")
    options = parser.parse_args(words)
    if distributed.MAY_RESTART and not (options.resume or options.dry_run):
        raise UserError(
            "torchrun may start this command again (--max-restarts); add --resume after the script's name, "
            "so that it then continues the run"
        )
    for text in options.recipe:
        key, _, value = text.partition("=")
        if key in vars(options).keys() - known_fields.keys():
            raise UserError(f"{key} is no setting of the recipe; write --{key.replace('_', '-')} {value}")
    options.chosen = parse_recipe(options.recipe, known_fields)
    known = defaults_of(options.script, bool(getattr(options, "qat_bits", None)), options.chosen)
    for key, field in known_fields.items():
        setattr(options, key, options.chosen.get(key, known.get(key, field.default)))
    options.label_smoothing = getattr(options, "label_smoothing", known.get("label_smoothing"))
    if options.epochs is None:
        options.epochs = known.get("epochs", Settings.epochs)
    else:
        options.chosen["epochs"] = options.epochs
    return options


# ---------------------------------------------------------------- from settings to training


def warmup_cosine(step, warmup_steps, total_steps):
    """Factor on the learning rate: linear up to 1 over the warm-up, then half a cosine towards 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_schedule(optimizer, settings, steps_per_epoch):
    """The learning rate scheduler for settings.schedule, stepped once per batch."""
    total = settings.epochs * steps_per_epoch
    warmup, constant = max(1, round(settings.warmup * total)), settings.schedule == "constant"
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1.0 if constant else warmup_cosine(step, warmup, total)
    )


def parameter_groups(network, weight_decay):
    """Parameter groups: weight decay for weights of two or more dimensions, none for biases and BN."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decayed, plain = ([one for one in parameters if (one.ndim >= 2) == wide] for wide in (True, False))
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(network, settings):
    """AdamW, or SGD with Nesterov momentum 0.9; fused, in one pass over all parameters."""
    groups = parameter_groups(network, settings.weight_decay)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def optimise(loss, network, optimizer, scaler, settings, gammas=()):
    """One optimizer step on a scalar loss plus the penalty on the gammas."""
    # the penalty is not part of the logged loss, so that runs are comparable
    penalty = settings.gamma_l1 * sum(gamma.abs().sum() for gamma in gammas)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss + penalty).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
    scaler.step(optimizer)
    scaler.update()


class MovingAverage(AveragedModel):
    """The exponential moving average (EMA) of a network's weights and buffers.

    The same as torch's with `get_ema_multi_avg_fn`, but the counter remains on the CPU: copying it to the GPU
    would wait for the GPU in every step.
    """

    def __init__(self, network):
        super().__init__(network, use_buffers=True)
        self.pairs = {}  # data type -> [(tensor of the average, the same of the network)]
        both = ([*model.parameters(), *model.buffers()] for model in (self.module, network))
        for ours, theirs in zip(*both, strict=True):
            self.pairs.setdefault(ours.dtype, []).append((ours, theirs))

    @torch.no_grad()
    def update(self, decay):
        """ours = decay * ours + (1 - decay) * theirs; the first call copies theirs."""
        average = get_ema_multi_avg_fn(decay if self.n_averaged > 0 else 0.0)
        for pairs in self.pairs.values():
            average(*zip(*pairs), None)
        self.n_averaged += 1
