"""The report's figures, drawn from the summary: a function each, which returns a matplotlib Figure.

Colours are Okabe and Ito's for the colour-blind; every line has its own marker and dashes for grey printing.
"""

import io
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

style.use(Path(__file__).with_name("figures.mplstyle"))
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "0.35"
MODES = {  # of pruning: name in the legend, colour, marker, dashes
    "none": ("cut only", BLACK, "x", ":"),
    "mistake1": ("reference code's mistake, 1 epoch a round", RED, "v", "--"),
    "finetune1": ("fine-tuned, 1 epoch a round", SKY, "s", "-"),
    "finetune5": ("fine-tuned, 5 epochs a round", BLUE, "o", "-"),
    "finetune20": ("fine-tuned, 20 epochs a round", PURPLE, "P", (0, (5, 1))),
    "retrain5": ("from scratch, 5 epochs a round", ORANGE, "^", "-."),
    "once": ("last shape from scratch, 15 epochs", GREEN, "D", "none"),
}
REWINDING = {  # the same of one cut, each followed by 18 epochs
    "finetune": ("once: fine-tuned", BLUE, "o", ":"),
    "lr_rewinding": ("once: learning rate rewound", PURPLE, "P", "-"),
    "rewinding": ("once: weights rewound to epoch 2", RED, "v", "--"),
    "retrain": ("once: from scratch", ORANGE, "^", "-."),
}


def panels(columns, height, width=6.5, **options):
    """(Figure, its axes in one row)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def series(axes, points, label, colour, marker, dashes):
    """A line through (x, accuracy) points with bars of one standard deviation; accuracy: {mean, std}."""
    xs, stats = zip(*points)
    bars = [100 * (one["std"] or 0) for one in stats]
    options = {"color": colour, "marker": marker, "linestyle": dashes, "capsize": 2, "elinewidth": 0.8}
    axes.errorbar(xs, [100 * one["mean"] for one in stats], yerr=bars, label=label, **options)


def legend(figure, axes, columns=3):
    """One legend below the panels."""
    found = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels())}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def logarithmic(axes, ticks):
    """A logarithmic x axis; ticks: {place: text}."""
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), ticks.values())
    axes.minorticks_off()


def pruning(summary):
    """Parameters against accuracy: a panel per rate, a line per way of going on after a cut; one cut."""
    runs, base = summary["pruning"], summary["pruning"]["base"]
    figure, axes = panels(3, 2.9, sharey=True)
    for panel, rate in zip(axes, ("0.95", "0.9")):
        for mode, look in MODES.items():
            if variant := runs.get(f"{mode}_{rate}"):
                points = [(one["parameters"] / 1000, one["accuracy"]) for one in variant["rounds"]]
                start = [] if mode == "once" else [(base["parameters"] / 1000, base["accuracy"])]
                series(panel, start + points, *look)
        panel.set(title=f"rate {float(rate):.2f}, five rounds", xlabel="parameters, thousands")
    runs, base = summary["rewinding"], summary["rewinding"]["base"]
    for mode, look in REWINDING.items():
        points = [base, *(runs[f"{mode}_{rate}"] for rate in (0.6, 0.35))]
        series(axes[2], [(one["parameters"] / 1000, one["accuracy"]) for one in points], *look)
    axes[2].set(title="rates 0.6 and 0.35, one round", xlabel="parameters, thousands")
    axes[0].set_ylabel(f"accuracy ({summary['photos']}), %")
    legend(figure, axes)
    return figure


def families(summary):
    """Parameters (logarithmic) against accuracy of the two families."""
    figure, axes = panels(1, 2.5, width=3.9)
    looks = {"mobile": ("depthwise separable", BLUE, "o", "-"), "plain": ("ordinary", ORANGE, "s", "--")}
    for family, look in looks.items():
        members = [one for name, one in summary["families"].items() if name.startswith(family)]
        series(axes[0], sorted((one["parameters"], one["accuracy"]) for one in members), *look)
    logarithmic(axes[0], {30_000: "30k", 100_000: "100k", 300_000: "300k", 1_000_000: "1M", 2_000_000: "2M"})
    axes[0].set(xlabel="parameters (logarithmic)", ylabel=f"accuracy ({summary['photos']}), %")
    legend(figure, axes)
    return figure


def bits(summary):
    """File bytes (logarithmic) against accuracy, rounded only and with QAT, per tensor and per channel."""
    runs = summary["bits"]
    looks = {
        "tensor": ("rounded, per tensor", ORANGE, "s", "--"),
        "channel": ("rounded, per channel", BLUE, "o", "-"),
        "tensor_qat": ("with QAT, per tensor", RED, "v", ":"),
        "channel_qat": ("with QAT, per channel", GREEN, "^", "-."),
    }
    figure, axes = panels(2, 2.5, sharex=True, sharey=True)
    for panel, network in zip(axes, ("student", "residual6")):
        whole = 100 * runs[f"{network}_8_channel"]["before"]["mean"]
        panel.axhline(whole, color=GREY, linewidth=0.9, linestyle=(0, (1, 1)), label="32 bits")
        for kind, look in looks.items():
            stored = [runs[f"{network}_{number}_{kind}"] for number in (8, 6, 5, 4, 3, 2)]
            series(panel, [(one["bytes"]["mean"] / 1000, one["accuracy"]) for one in stored], *look)
        panel.axvline(300, color=GREY, linewidth=0.8)
        lowest = 100 * runs[f"{network}_2_channel_qat"]["accuracy"]["mean"] - 8
        panel.set(title=network, xlabel="bytes of the file, thousands (logarithmic)", ylim=(lowest, None))
        logarithmic(panel, {size: str(size) for size in (70, 100, 150, 200, 300)})
    axes[0].set_ylabel(f"accuracy ({summary['photos']}), %")
    legend(figure, axes)
    return figure


def confusion(summary):
    """Shares of every class's photos by what they are taken for, before and after compression."""
    before, after = summary["model"]["evaluation_before"], summary["model"]["evaluation"]
    names = list(after["class_accuracy"])
    centres = [index + 0.5 for index in range(len(names))]
    figure, both = panels(2, 2.4, sharey=True)
    for axes, record, title in zip(both, (before, after), ("32 bits", f"{after['bits']} bits, as handed in")):
        shares = [[number / sum(row) for number in row] for row in record["confusion"]]
        axes.grid(False)
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1)  # an image would not be vectors
        for row, line in enumerate(shares):
            for column, share in enumerate(line):
                if share >= 0.005:
                    colour = "black" if share < 0.55 else "white"
                    options = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
                    axes.text(column + 0.5, row + 0.5, f"{100 * share:.0f}", **options)
        axes.set(xticks=centres, xlabel="taken for", title=title)
        axes.set_xticklabels(names, rotation=40, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
    both[0].set(yticks=centres, yticklabels=names, ylabel=f"label ({after['measured_on']})")
    both[0].invert_yaxis()  # of both: they share it
    return figure


FIGURES = {"pruning": pruning, "families": families, "bits": bits, "confusion": confusion}


def svg(figure):
    """The figure as bytes of an SVG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
