"""The report's figures, drawn from records: a function each, which returns a matplotlib Figure (None: the
records hold nothing to draw).

Colours are Okabe and Ito's for the colour-blind; every series has a marker and a line style of its own as
well, for grey printing.
"""

import statistics

import matplotlib
from answers_bytes import bits_curves
from answers_design import FAMILIES, family_points
from answers_model import confusion_shares, input_sizes
from answers_pruning import mode_names, pruning_lines
from conclusions import sampling_error
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator
from readings import measured_on, view_pixels

STYLE = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "report",
    "savefig.dpi": 200,
}
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY = "0.35"  # of lines that mark something
WIDTH = 6.5  # inches of text


def panels(columns, height, width=WIDTH, **options):
    """(Figure, list of its axes in one row)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False, **options)[0])


def series(axes, xs, groups, look, label):
    """A line through the means of groups of accuracies, with a bar of one standard deviation where there are
    several seeds.
    """
    colour, marker, dashes = look
    means = [100 * statistics.mean(group) for group in groups]
    bars = (
        [100 * statistics.stdev(group) for group in groups]
        if all(len(group) > 1 for group in groups)
        else None
    )
    axes.errorbar(
        xs,
        means,
        yerr=bars,
        color=colour,
        marker=marker,
        linestyle=dashes,
        label=label,
        capsize=2,
        elinewidth=0.8,
    )


def accuracy_label(photos):
    """Of an axis."""
    return f"accuracy ({photos}), %"


def logarithmic(axes, sizes, ticks, margins, text):
    """A logarithmic x axis around sizes, with those ticks that are on it; text: a formatter for them."""
    low, high = min(sizes) * margins[0], max(sizes) * margins[1]
    axes.set(xscale="log", xlim=(low, high))
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_major_formatter(text)
    axes.xaxis.set_minor_locator(NullLocator())


def pruning(records, photos):
    """Parameters against accuracy: one panel per rate, one line per way of going on after a cut."""
    looks = {
        "none": (BLACK, "x", ":"),
        "mistake1": (RED, "v", "--"),
        "finetune1": (SKY, "s", "-"),
        "finetune5": (BLUE, "o", "-"),
        "finetune20": (PURPLE, "P", (0, (5, 1))),
        "retrain5": (ORANGE, "^", "-."),
        "once": (GREEN, "D", "none"),
    }
    lines, names = pruning_lines(records["pruning"]), mode_names(records["pruning"])
    rates = sorted({rate for _, rate in lines}, reverse=True)
    figure, axes = panels(len(rates), 2.2, sharex=True, sharey=True)
    for panel, rate in zip(axes, rates):
        for mode, look in looks.items():
            if (mode, rate) not in lines:
                continue
            line = lines[mode, rate][1:] if mode == "once" else lines[mode, rate]
            series(
                panel, [size / 1000 for size, _ in line], [values for _, values in line], look, names[mode]
            )
        panel.set(
            title=f"each round keeps {100 * float(rate):.0f} % of the channels",
            xlabel="parameters, thousands",
        )
    axes[0].set_ylabel(accuracy_label(photos))
    found = {label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels())}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3)
    return figure


def pruning_epochs(records, photos):
    """One fine-tuned run epoch by epoch, with its cuts; None where the records keep no history."""
    runs = records["pruning"]
    rate = min(variant.rpartition("_")[2] for variant in runs if variant.startswith("finetune5_"))
    first = runs["base"][0]["history"]
    rounds = [one.get("history") for one in runs[f"finetune5_{rate}"][0]["rounds"]]
    if not all(rounds):
        return None
    history = [row for part in (first, *rounds) for row in part]
    cuts = [len(first) + 0.5 + sum(len(part) for part in rounds[:index]) for index in range(len(rounds))]
    epochs = range(1, len(history) + 1)
    figure, axes = panels(2, 1.35)
    looks = {"train": (ORANGE, "s", "--", "training"), "validation": (BLUE, "o", "-", "validation")}
    for panel, key, factor in zip(axes, ("accuracy", "loss"), (100, 1)):
        for split, (colour, marker, dashes, label) in looks.items():
            values = [factor * row[f"{split}_{key}"] for row in history]
            panel.plot(
                epochs, values, color=colour, linestyle=dashes, marker=marker, markersize=2.5, label=label
            )
        for index, cut in enumerate(cuts):
            label = None if index else f"cut to {100 * float(rate):.0f} %"
            panel.axvline(cut, color=GREY, linestyle=":", linewidth=0.9, label=label)
        panel.set(xlabel="epoch", ylabel="accuracy, %" if key == "accuracy" else "cross-entropy")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def bits(records, photos):
    """File bytes (log) against accuracy: rounding only and training through it, one grid per tensor and per
    channel.
    """
    curves, whole = bits_curves(records["bits"])
    networks = list(whole)
    looks = {
        ("tensor", False): (ORANGE, "s", "--"),
        ("channel", False): (BLUE, "o", "-"),
        ("tensor", True): (RED, "v", ":"),
        ("channel", True): (GREEN, "^", "-."),
    }
    sizes = [size / 1000 for curve in curves.values() for _, size, _ in curve] + [300]
    ticks = (50, 70, 100, 150, 200, 300, 500, 700, 1000)
    # rounding to 2 bits leaves so little that the rest would be a line
    lowest = (
        min(
            100 * statistics.mean(values)
            for (*_, trained), curve in curves.items()
            if trained
            for *_, values in curve
        )
        - 8
    )
    figure, axes = panels(len(networks), 2.25, sharey=True, sharex=True)
    for panel, network in zip(axes, networks):
        level = 100 * statistics.mean(whole[network])
        panel.axhline(
            level, color=GREY, linewidth=0.9, linestyle=(0, (1, 1)), label="32 bits, whatever its bytes"
        )
        for (granularity, trained), look in looks.items():
            curve = curves[network, granularity, trained]
            label = f"{'with QAT' if trained else 'rounded'}, per {granularity}"
            series(
                panel, [size / 1000 for _, size, _ in curve], [values for _, _, values in curve], look, label
            )
        for number, size, _ in curves[network, "channel", False]:
            panel.annotate(
                str(number),
                (size / 1000, 0.035),
                xycoords=("data", "axes fraction"),
                ha="center",
                fontsize=7,
                color=BLUE,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                zorder=5,
            )
        panel.axvline(300, color=GREY, linewidth=0.8)
        panel.set_ylim(bottom=lowest)
        panel.set(title=network, xlabel="bytes of the file, thousands (logarithmic)")
        logarithmic(panel, sizes, ticks, (0.9, 1.12), FormatStrFormatter("%d"))
    axes[0].set_ylabel(accuracy_label(photos))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def families(records, photos):
    """Parameters (log) against accuracy: two families, and a network of neither on each side."""
    of_family, others = family_points(records)
    figure, (axes,) = panels(1, 2.35, width=3.9)
    looks = {
        "mobile": (BLUE, "o", "-"),
        "plain": (ORANGE, "s", "--"),
        "residual6": (GREEN, "D", "none"),
        "resnet18": (RED, "^", "none"),
    }
    for family, line in of_family.items():
        series(
            axes, [size for size, _ in line], [values for _, values in line], looks[family], FAMILIES[family]
        )
    for name, (size, values) in others.items():
        series(axes, [size], [values], looks[name], name)
    sizes = [size for line in (*of_family.values(), others.values()) for size, _ in line]
    axes.set(xlabel="parameters (logarithmic)", ylabel=accuracy_label(photos))
    ticks = {
        30_000: "30k",
        100_000: "100k",
        300_000: "300k",
        1_000_000: "1M",
        3_000_000: "3M",
        10_000_000: "10M",
    }
    logarithmic(axes, sizes, ticks, (0.8, 1.25), lambda tick, _: ticks[round(tick)])
    figure.legend(loc="outside lower center", ncols=4, columnspacing=1.2)
    return figure


def input_size(records, photos):
    """Input size against accuracy of one network."""
    sizes = input_sizes(records)
    total = next(iter(records["input_size/"].values()))["validation_photos"]
    pixels = [row[0] for row in sizes]
    figure, (axes,) = panels(1, 1.4, width=3.4)
    bars = [100 * sampling_error(before, total) for _, before, _, _ in sizes]
    before, stored = ([100 * row[column] for row in sizes] for column in (1, 2))
    bits = f"{sizes[0][3]} bits, as stored"
    axes.errorbar(
        pixels,
        before,
        yerr=bars,
        color=BLUE,
        marker="o",
        linestyle="-",
        capsize=2,
        elinewidth=0.8,
        label="32 bits",
    )
    axes.plot(pixels, stored, color=ORANGE, marker="s", linestyle="--", label=bits)
    trained = view_pixels(records["model_training.json"])
    axes.axvline(trained, color=GREY, linestyle=":", linewidth=0.9, label="size of training views")
    axes.set(xlabel="input size, pixels", ylabel="accuracy, %", xticks=pixels)
    figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2)
    return figure


def confusion(records, photos):
    """Shares of every class's photos by what they are taken for, before and after compression."""
    before, after = records["evaluation_before.json"], records["evaluation.json"]
    names = list(after["class_accuracy"])
    centres = [index + 0.5 for index in range(len(names))]
    figure, both = panels(2, 2.25, sharey=True)
    for axes, record, title in zip(both, (before, after), ("32 bits", f"{after['bits']} bits, as handed in")):
        axes.grid(False)
        shares = confusion_shares(record)
        # falling in lightness, so that grey printing keeps the order; an image would not be vectors
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1)
        for row, line in enumerate(shares):
            for column, share in enumerate(line):
                if share >= 0.005:
                    colour = "black" if share < 0.55 else "white"
                    axes.text(
                        column + 0.5,
                        row + 0.5,
                        f"{100 * share:.0f}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color=colour,
                    )
        axes.set(xticks=centres, xlabel="taken for", title=title)
        axes.set_xticklabels(names, rotation=40, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
    both[0].set(yticks=centres, ylabel=f"label ({measured_on(after)})")
    both[0].set_yticklabels(names)
    both[0].invert_yaxis()  # of both: they share it
    return figure


def reliability(records, photos):
    """Confidence against accuracy, before and after compression (Guo et al. 2017), and how many photos are
    how sure.
    """
    figure = Figure(figsize=(2.6, 1.8), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    before, after = records["evaluation_before.json"], records["evaluation.json"]
    axes.plot((0, 100), (0, 100), color=GREY, linewidth=0.9, linestyle=":", label="calibrated")
    looks = ((before, "32 bits", (ORANGE, "s", "--")), (after, f"{after['bits']} bits", (BLUE, "o", "-")))
    for record, text, (colour, marker, dashes) in looks:
        filled = [(100 * mean, 100 * accuracy) for count, mean, accuracy in record["reliability"] if count]
        axes.plot(*zip(*filled), color=colour, marker=marker, linestyle=dashes, label=text)
    rows = after["reliability"]
    centres = [100 * (index + 0.5) / len(rows) for index in range(len(rows))]
    counts.bar(centres, [count for count, _, _ in rows], width=90 / len(rows), color=BLUE)
    axes.set(ylabel="accuracy, %", xlim=(0, 100), ylim=(0, 100))
    counts.set(xlabel="confidence, %", ylabel="photos")
    axes.legend(loc="lower right", fontsize=6.5, labelspacing=0.25, borderaxespad=0.2)
    return figure


def classes(records, photos):
    """Accuracy of every class before and after compression, with the sampling error of its photos."""
    before, after = records["evaluation_before.json"], records["evaluation.json"]
    names = sorted(after["class_accuracy"], key=after["class_accuracy"].get)
    totals = dict(zip(after["class_accuracy"], map(sum, after["confusion"])))
    figure, (axes,) = panels(1, 1.8, width=3.9)
    looks = (
        (before, "32 bits", -0.2, ORANGE, "////"),
        (after, f"{after['bits']} bits, as handed in", 0.2, BLUE, None),
    )
    for record, text, shift, colour, hatch in looks:
        accuracy = record["class_accuracy"]
        axes.bar(
            [index + shift for index in range(len(names))],
            [100 * accuracy[name] for name in names],
            yerr=[100 * sampling_error(accuracy[name], totals[name]) for name in names],
            error_kw={"elinewidth": 0.7, "capsize": 1.5},
            width=0.38,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.3,
            label=text,
        )
    axes.set(xticks=range(len(names)), ylabel="accuracy, %", ylim=(0, 100))
    axes.set_xticklabels(names, rotation=40, ha="right", rotation_mode="anchor")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", ncols=2)
    return figure


def draw(name, records, photos, folder):
    """Write folder/NAME.svg and .png; returns whether there was anything to draw."""
    with matplotlib.rc_context(STYLE):
        figure = globals()[name](records, photos)
        if figure is None:
            return False
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png")
    return True
