"""What is compared: every experiment's question and the command line of each of its variants;
experiments/__main__.py runs them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Experiment:
    """A question and its variants: name -> command line of a script, or several joined by &&.

    In a command {data}, {seed}, {out}, {model}, this project's model.bin, and {strong}, the file given by
    --strong, are filled in; the command must leave its record in {out}/record.json. {other} is the folder of
    another variant with the same seed, {other@0} with seed 0, {experiment/other} of another experiment.
    """

    question: str
    variants: dict
    seeds: tuple = (0, 1, 2)
    subset: bool = False  # whether its runs read a part of the photos, which has a fingerprint of its own


RUN = "--seed {seed} --out {out} --resume"
RECORD = "--data {data} --record {out}/record.json"
NARROW = "--network residual6 --set hidden=96,160,160,256,256,256"
SMALL = "{data} --size 64 --recipe augment=light"  # light: the schedules are short
# what many runs can be afforded of without a GPU
SHORT = "{data} --size 56 --recipe view_size=48 augment=light lr=0.002"
LONG = "{data} --size 96 --epochs 30"
MEDIUM = "--recipe detail=64 view_size=72 augment=medium lr=0.005"
SOFT = "alpha=0.5 temperature=2"  # follows MEDIUM
LONG_STRONG = f"train_kd.py {LONG} --teacher {{strong}} --network student"

BASE = "{base}/best.pt {data}"
CUT = f"prune.py {BASE}"
TUNED = "--rounds ROUNDS --recipe augment=light lr=0.001"
CUTS = {  # of one trained network: name -> how it goes on, for ROUNDS rounds
    "none": f"{CUT} --mode none --rounds ROUNDS",
    "mistake1": f"experiments/benchmarks/reference_mistake.py {BASE} --mode finetune --epochs 1 {TUNED}",
    **{f"finetune{epochs}": f"{CUT} --mode finetune --epochs {epochs} {TUNED}" for epochs in (1, 5, 20)},
    "retrain5": f"{CUT} --mode retrain --epochs 5 --rounds ROUNDS --recipe augment=light",
}
QUARTER = "widths=8,16,32,64,128,128,128,128"  # of the course's student: a quarter of its parameters
# the same quarter
QUARTERED = "prune.py {big}/best.pt {data} --target parameters=68363 --epochs 8 --recipe augment=light"
STRONG = f"train_kd.py {SHORT} alpha=0.8 temperature=4 --teacher {{model}} --epochs 6 --network student"
FIXED = STRONG.replace("view_size=48 augment=light", "augment=none")
AGREEMENT = "{data} --teacher {model} --record {out}/record.json"
AS_RESNET = "{data} --teacher {resnet18}/best.pt --record {out}/record.json"
REDUCED = "{data} --reduce 64 --record {out}/record.json"
OWN = "{data} --size 96 --epochs 10 --recipe view_size=72 detail=64 batch_size=32"
SHIPPED = (
    "--set widths=64,64,64,144,144,144,144 --set hidden=96,192,192,384,624,624,624 --set pools=1,0,0,1,0,0,0 "
    "--set head=384"
)  # the network of model.bin
WIDER = {  # thousands of parameters: expanded channels, width of the head, bits that fit 300,000 bytes
    251: ("64,96,96,160,192,192,192", 160, 8),
    392: ("80,144,144,248,312,312,312", 256, 6),
    543: ("96,192,192,320,448,448,448", 320, 4),
    737: ("128,248,248,432,624,624,624", 384, 3),
}
SIZES = {  # thousands of bytes: stem, widths, hidden and head, as `models.py --widest` gives them
    25: ("8,8", "16,16,16,32,32,32,32", "24,40,40,80,128,128,128", 80),
    50: ("8,8", "24,24,24,48,48,48,48", "32,72,72,136,224,224,224", 136),
    100: ("8,16", "32,32,32,80,80,80,80", "48,104,104,208,328,328,328", 208),
    200: ("16,24", "48,48,48,112,112,112,112", "80,152,152,312,504,504,504", 312),
    300: ("16,32", "64,64,64,144,144,144,144", "96,192,192,384,624,624,624", 384),
}
# the width of the last four blocks: those of the first four
MOBILE = {88: "4,12,24,44", 128: "8,16,32,64", 180: "12,24,44,92", 256: "16,32,64,128", 360: "24,44,92,180"}
PLAIN = {32: "4,4,8,16", 64: "4,8,16,32", 90: "6,12,22,46", 128: "8,16,32,64", 256: "16,32,64,128"}
VIEWS = "train_student.py {data} --size 96 --epochs 8 --recipe view_size=72"


def store(trained, bits, qat=False, granularity="channel"):
    """The command that stores a trained network; qat: after two epochs of QAT."""
    weights, output = f"{{{trained}}}/best.pt", f"{{out}}/model.bin --max-bytes 30000000 {RECORD}"
    if not qat:
        return f"quantize.py {weights} {output} --bits {bits} --granularity {granularity}"
    train = f"train_student.py {{data}} --init {weights} --qat-bits {bits} --epochs 2 --recipe augment=light"
    run = f"qat_granularity={granularity} --seed {{seed}} --out {{out}}/run --resume"
    return f"{train} {run} && quantize.py {{out}}/run/best.pt {output}"


def rounding(network, trained):
    """Commands that store a trained network at 8 to 2 bits, without and with QAT."""
    return {
        f"{network}_{bits}_{granularity}{suffix}": store(trained, bits, bool(suffix), granularity)
        for suffix in ("", "_qat")
        for bits in (8, 6, 5, 4, 3, 2)
        for granularity in ("tensor", "channel")
    }


def wider():
    """Commands that train our network in every size of WIDER and store it at the bits that fit."""
    variants = {}
    for size, (hidden, head, bits) in WIDER.items():
        variants[f"float_{size}"] = (
            f"train_student.py {SHORT} --epochs 8 --network residual6 --set widths=64,64,64,128,128,128,128 "
            f"--set pools=1,0,0,1,0,0,0 --set hidden={hidden} --set head={head} {RUN}"
        )
        variants[f"stored_{size}"] = store(f"float_{size}", bits, qat=True)
    return variants


def fitted():
    """Commands that train our network in every size of SIZES, distilled and then with QAT, and store it."""
    variants, distil = {}, f"train_kd.py {{data}} --teacher {{strong}} {MEDIUM} {SOFT} views=5"
    for size, (stem, widths, hidden, head) in SIZES.items():
        variants[f"float_{size}"] = (
            f"{distil} stop_epoch=20 --size 96 --epochs 30 --network residual6 --set stem={stem} "
            f"--set widths={widths} --set hidden={hidden} --set pools=1,0,0,1,0,0,0 --set head={head} {RUN}"
        )
        tune = f"{distil} lr=0.001 --init {{float_{size}}}/best.pt --qat-bits 3 --epochs 10"
        variants[f"stored_{size}"] = (
            f"{tune} --seed {{seed}} --out {{out}}/run --resume && quantize.py {{out}}/run/best.pt "
            f"{{out}}/model.bin --max-bytes {size}000 {RECORD}"
        )
    return variants


EXPERIMENTS = {
    "scratch": Experiment(
        "from scratch, equal epochs: the course's student, our network, and ours in no more bytes",
        {
            "student": f"train_student.py {{data}} --size 96 --epochs 12 --network student {RUN}",
            "residual6_narrow": f"train_student.py {{data}} --size 96 --epochs 12 {NARROW} {RUN}",
            "residual6": f"train_student.py {{data}} --size 96 --epochs 12 --network residual6 {RUN}",
        },
    ),
    "pruning": Experiment(
        "the course's student cut five times: fine-tuned, anew, not trained, or by the reference's mistake",
        {
            "base": f"train_student.py {SMALL} --epochs 15 --network student {RUN}",
            **{
                f"{name}_{rate}": f"{cut.replace('ROUNDS', '5')} --rate {rate} --scope 3-6 {RUN}"
                for rate in (0.95, 0.9)
                for name, cut in CUTS.items()
                if (name, rate) != ("finetune20", 0.95)  # hours of training
            },
            **{
                f"once_{rate}": f"{CUT} --mode retrain --epochs 15 --rounds 1 --recipe augment=light "
                f"--rate {rate**5:.6f} --scope 3-6 {RUN}"
                for rate in (0.95, 0.9)
            },
        },
    ),
    "rewinding": Experiment(
        "the course's student cut once: fine-tuned, anew, or with learning rates or weights rewound",
        {
            "base": f"train_student.py {SMALL} keep_epoch=2 --epochs 20 --network student {RUN}",
            **{
                f"{name}_{rate}": f"{CUT} --mode {mode} --epochs 18 --recipe augment=light lr={lr} "
                f"--rate {rate} --scope 3-6 {RUN}"
                for rate in (0.6, 0.35)
                for name, mode, lr in (
                    ("finetune", "finetune", 0.001),
                    ("lr_rewinding", "finetune", 0.002),
                    ("rewinding", "rewind --rewind-to {base}/epoch2.pt", 0.002),
                    ("retrain", "retrain", 0.002),
                )
            },
        },
    ),
    "pruning_wide8": Experiment(
        "wide8 of a student report cut at two rates, fine-tuned or not",
        {
            "base": f"train_student.py {SHORT} --epochs 8 --network wide8 {RUN}",
            **{
                f"{name}_{rate}": f"{CUTS[name].replace('ROUNDS', rounds)} --rate {rate} --scope 3-6 {RUN}"
                for rate, rounds in ((0.95, "5"), (0.85, "7"))
                for name in ("none", "mistake1", "finetune1")
            },
        },
    ),
    "lowrank": Experiment(
        "at equal parameters: the student of `pruning` in low-rank factors or with fewer channels",
        {
            f"{name}_{parameters}": f"prune.py {{pruning/base}}/best.pt {{data}} --mode {mode} "
            f"--target parameters={parameters} --epochs 5 --recipe augment=light lr=0.001 {more}{RUN}"
            for parameters in (171606, 114810)
            for name, mode, more in (
                ("factors", "lowrank", ""),
                ("factors_global", "lowrank", "ranking=global "),
                ("channels", "finetune", ""),
            )
        },
    ),
    "compress": Experiment(
        "a quarter of the bytes by quantization, pruning, low rank, distillation, or direct training",
        {
            "big": f"train_student.py {SHORT} --epochs 8 --network student {RUN}",
            "quantized": store("big", 8),
            "big_long": f"train_student.py {SHORT} --epochs 16 --network student {RUN}",
            "quantized_long": store("big_long", 8),
            "pruned": f"{QUARTERED} --mode finetune {RUN}",
            "factorised": f"{QUARTERED} --mode lowrank {RUN}",
            "factorised_global": f"{QUARTERED} ranking=global --mode lowrank {RUN}",
            "distilled": f"train_kd.py {SHORT} alpha=0.8 temperature=4 --teacher {{big}}/best.pt --epochs 8 "
            f"--network student --set {QUARTER} {RUN}",
            "direct": f"train_student.py {SHORT} --epochs 16 --network student --set {QUARTER} {RUN}",
        },
    ),
    "bits": Experiment(
        "bytes against accuracy from 8 to 2 bits per weight, without and with QAT",
        {
            **rounding("student", "pruning/base"),
            "residual6": f"train_student.py {SMALL} --epochs 15 --network residual6 {RUN}",
            **rounding("residual6", "residual6"),
        },
    ),
    "equal_bytes": Experiment(
        "at 300,000 bytes: few weights of many bits or many of few, two epochs of QAT", wider()
    ),
    "sizes": Experiment(
        "from 25,000 to 300,000 bytes: distilled networks of `models.py --widest`, with QAT at 3 bits",
        fitted(),
    ),
    "own_classes": Experiment(
        "180 photos of three own classes: from the weights of model.bin, or from scratch",
        {
            "scratch": f"experiments/benchmarks/own_classes.py {OWN} {SHIPPED} {RUN}",
            "init": f"experiments/benchmarks/own_classes.py {OWN} --init {{model}} {RUN}",
        },
        subset=True,
    ),
    "teachers": Experiment(
        "ResNet-18 trained from scratch, how it stands 16 and 8 bits, and how many of its answers stay",
        {
            "resnet18": f"train_student.py {LONG} {MEDIUM} lr=0.002 --network resnet18 {RUN}",
            "resnet18_16": store("resnet18", 16),
            "resnet18_8": store("resnet18", 8),
            "resnet18_16_agreement": f"evaluate.py {{resnet18_16}}/model.bin {AS_RESNET}",
            "resnet18_8_agreement": f"evaluate.py {{resnet18_8}}/model.bin {AS_RESNET}",
        },
    ),
    "distillation": Experiment(
        "three students from scratch, from a weak teacher and from a strong one; the course's recipe for one",
        {
            **{
                f"{network}_{name}": f"{script} {MEDIUM} {more} --network {network} {arguments} {RUN}"
                for network, arguments in (("student", ""), ("residual6", SHIPPED), ("slim9", ""))
                for name, script, more in (
                    ("scratch", f"train_student.py {LONG}", ""),
                    ("weak", f"train_kd.py {LONG} --teacher {{teachers/resnet18@0}}/best.pt", SOFT),
                    ("strong", f"train_kd.py {LONG} --teacher {{strong}}", SOFT),
                )
            },
            "student_course": f"{LONG_STRONG} --recipe detail=64 augment=course alpha=0.5 temperature=20 "
            f"lr=0.001 weight_decay=0.01 schedule=constant batch_size=32 ema=0 {RUN}",
        },
    ),
    "alpha_temperature": Experiment(
        "weight of the teacher and temperature, against 0.5 and 2: student_strong of `distillation`",
        {
            f"{name}_{value}": f"{LONG_STRONG} {MEDIUM} {recipe} {RUN}"
            for name, value, recipe in (
                *(("alpha", alpha, f"alpha={alpha} temperature=2") for alpha in (0, 0.25, 0.75, 0.9, 1)),
                *(("temperature", t, f"alpha=0.5 temperature={t}") for t in (1, 4, 8, 20)),
            )
        },
    ),
    "testing": Experiment(
        "soft labels on the unlabelled testing photos: what is learned and what is memorised; "
        "never for a model that is handed in",
        {
            "labelled": f"{STRONG} {RUN}",
            "unlabelled": f"{STRONG} --unlabeled {{data}}/testing {RUN}",
            "labelled_fixed": f"{FIXED} {RUN}",
            "unlabelled_fixed": f"{FIXED} --unlabeled {{data}}/testing {RUN}",
            **{
                f"{name}_measured": f"evaluate.py {{{name}}}/best.pt {AGREEMENT}"
                for name in ("labelled", "unlabelled", "labelled_fixed", "unlabelled_fixed")
            },
        },
    ),
    "resolution": Experiment(
        "photos of every resolution: some of the views blurred, or none",
        {
            "standard": f"{VIEWS} augment=standard {RUN}",
            "standard_measured": f"evaluate.py {{standard}}/best.pt {REDUCED}",
            "blurred": f"{VIEWS} augment=blurred {RUN}",
            "blurred_measured": f"evaluate.py {{blurred}}/best.pt {REDUCED}",
        },
    ),
    "one_megabyte": Experiment(
        "about 1 MB at 32 bits: ordinary, depthwise and grouped convolutions, and those with one group",
        {
            name: f"train_student.py {SMALL} --epochs 6 --network {network} {RUN}"
            for name, network in (
                ("cnn1mb", "cnn1mb"),
                ("one_group", "group1mb_3 --set group_width=0"),
                ("dw1mb_3", "dw1mb_3"),
                ("dw1mb_4", "dw1mb_4"),
                ("group1mb_3_2", "group1mb_3"),
                ("group1mb_3_4", "group1mb_3 --set group_width=4"),
                ("group1mb_3_8", "group1mb_3 --set group_width=8"),
                ("group1mb_4_8", "group1mb_4"),
            )
        },
    ),
    "families": Experiment(
        "parameters against accuracy: depthwise-separable and ordinary convolutions, five widths each",
        {
            **{
                f"mobile_{last}": f"train_student.py {SHORT} --epochs 6 --network student "
                f"--set widths={first},{last},{last},{last},{last} {RUN}"
                for last, first in MOBILE.items()
            },
            **{
                f"plain_{last}": f"train_student.py {SHORT} --epochs 6 --network plain_student "
                f"--set widths={first},{last},{last},{last},{last} --set hidden={last} {RUN}"
                for last, first in PLAIN.items()
            },
        },
    ),
}
