"""What the report says about the design of networks."""

import math
from statistics import mean

from architectures import architecture_table, small_cnn_macs
from conclusions import (
    compare,
    listed,
    mean_std,
    points,
    seeds_text,
    sorted_out,
    unanimous,
    verdict_text,
    verdicts,
)
from readings import accuracies, epochs_of, input_pixels, photos_of, pixels_text

NAMES = {  # of `scratch`
    "student": "the course’s StudentNet",
    "residual6_narrow": "ours, no larger",
    "residual6": "ours",
}


def scratch(records):
    """Our network against the course's student, trained alike."""
    runs = records["scratch"]
    first = runs["student"][0]
    values = {name: accuracies(runs[name]) for name in NAMES}
    rows = [
        [text, name, f"{runs[name][0]['parameters']:,}", mean_std(values[name])]
        for name, text in NAMES.items()
    ]
    narrow, wide = (
        compare(values[name], values["student"], photos_of(first))
        for name in ("residual6_narrow", "residual6")
    )
    return {
        "rows": rows,
        "epochs": str(epochs_of(first)),
        "pixels": str(input_pixels(first)),
        "seeds": seeds_text(values["student"]),
        "narrow": narrow.to("StudentNet"),
        "wide": wide.to("it"),
        "conclusion": verdict_text(
            narrow,
            "At equal size the design itself is better",
            "At equal size and so few epochs the design makes no difference that could be told",
            "At equal size the design itself is worse",
        ),
        "student": architecture_table(first["model"]),
        "ours": architecture_table(runs["residual6"][0]["model"]),
    }


ORDINARY = 4  # layers that all networks of the 1 MB question begin with


def convolutions(arguments):
    """What the wide layers of a 1 MB network are, in words, and how many there are."""
    width, separable = arguments["group_width"], len(arguments["separable"])
    if not separable:
        return "ordinary", len(arguments["convs"]) - ORDINARY
    return {0: "one group", 1: "depthwise"}.get(width, f"groups of {width} channels"), separable


def macs_of(record):
    """Multiply-accumulates of one photo in a network of the 1 MB question."""
    return small_cnn_macs(record["model"]["arguments"], input_pixels(record))


def separation(separated, block):
    """The conclusion from {network: Comparison} of separated channels with the same blocks in one group, and
    from one group against ordinary convolutions.
    """
    cost = unanimous(
        separated,
        "separating the channels is a gain by itself",
        "that separating the channels costs or gains anything by itself is not shown for every width of "
        "groups",
        "separating the channels costs accuracy by itself",
    )
    if verdicts(separated) == {0}:
        cost = "that separating the channels costs or gains anything by itself is not shown"
    if block.verdict > 0:
        return f"So what gains is the block, a 3×3 and then a 1×1 convolution in place of one 3×3; {cost}"
    return f"So {cost}"


def one_megabyte(records):
    """Question 4: ordinary, depthwise and grouped convolutions in about as many bytes."""
    runs = records["one_megabyte"]
    first = runs["cnn1mb"][0]
    photos, values = photos_of(first), {name: accuracies(group) for name, group in runs.items()}
    rows = []
    for name, (record, *_) in runs.items():
        kind, layers = convolutions(record["model"]["arguments"])
        rows.append(
            [
                f"`{name}`",
                kind,
                str(layers),
                f"{record['parameters']:,}",
                f"{macs_of(record) / 1e6:.1f} M",
                mean_std(values[name]),
            ]
        )

    def against(name, base="cnn1mb"):
        return compare(values[name], values[base], photos)

    widened = ("dw1mb_4", "group1mb_4_8")  # have the saved parameters back
    alike = {f"`{name}`": against(name) for name in widened}
    separated = [name for name in runs if name not in ("cnn1mb", "one_group")]
    fewer = {f"`{name}`": against(name) for name in separated if name not in widened}
    alone = {f"`{name}`": against(name, "one_group") for name in separated if name not in widened}
    given_back = {
        f"`{wide}`": against(wide, narrow)
        for wide, narrow in (("dw1mb_4", "dw1mb_3"), ("group1mb_4_8", "group1mb_3_8"))
    }
    grouped = {
        f"`{name}`": against(name, "dw1mb_4" if "_4_" in name else "dw1mb_3")
        for name in runs
        if name.startswith("group")
    }
    saved = 1 - macs_of(runs["dw1mb_4"][0]) / macs_of(first)
    return {
        "rows": rows,
        "seeds": seeds_text(values["cnn1mb"]),
        "epochs": str(epochs_of(first)),
        "pixels": pixels_text(first),
        "alike": sorted_out(alike, "`cnn1mb`"),
        "fewer": sorted_out(fewer, "`cnn1mb`"),
        "block": against("one_group").to("`cnn1mb`"),
        "alone": sorted_out(alone, "`one_group`"),
        "given_back": sorted_out(given_back, "the same with three layers"),
        "grouped": sorted_out(grouped, "the depthwise network of as many layers"),
        "saved": f"{100 * saved:.0f}",
        "conclusion": separation(alone, against("one_group")),
    }


FAMILIES = {"mobile": "depthwise-separable", "plain": "ordinary"}


def family_points(records):
    """Parameters and accuracies of the two families, and of the two networks that belong to neither.

    {family: [(parameters, accuracies of the seeds)] by rising parameters}, {name: (parameters, accuracies)}
    """

    def point(group):
        return group[0]["parameters"], accuracies(group)

    families = {}
    for family in FAMILIES:
        members = [group for variant, group in records["families"].items() if variant.startswith(family)]
        families[family] = sorted(map(point, members))
    others = {
        "residual6": records["distillation"]["residual6_scratch"],
        "resnet18": records["teachers"]["resnet18"],
    }
    return families, {name: point(group) for name, group in others.items()}


NEAR = 1.5  # times as many parameters, or as few, are about equal


def of_equal_size(mobile, plain, photos):
    """{"30k against 28k": Comparison} of every depthwise-separable network with the plain one of nearest
    size, if that is near.
    """
    pairs = {}
    for parameters, values in mobile:
        near, other = min(plain, key=lambda point: abs(math.log(point[0] / parameters)))
        if abs(math.log(near / parameters)) < math.log(NEAR):
            pairs[f"{parameters / 1000:.0f}k against {near / 1000:.0f}k"] = compare(values, other, photos)
    return pairs


def family_gain(family, line):
    """What the largest network of a family has over the smallest, as text."""
    (small, least), (large, most) = line[0], line[-1]
    return (
        f"{points(mean(most) - mean(least))} points from {small:,} to {large:,} parameters "
        f"({FAMILIES[family]})"
    )


def family_text(pairs):
    """The conclusion from {"30k against 28k": Comparison} of depthwise-separable networks with plain ones."""
    ahead, behind = (
        [name.split()[0] for name, one in pairs.items() if one.verdict == verdict] for verdict in (1, -1)
    )
    if ahead and behind:
        return (
            f"So the depthwise-separable family is ahead at {listed(ahead)} parameters and behind at "
            f"{listed(behind)}"
        )
    if ahead:
        return (
            f"So the depthwise-separable family is ahead at {listed(ahead)} parameters, and nowhere "
            "shown to be behind"
        )
    if behind:
        return f"So the plain family is ahead at {listed(behind)} parameters, and nowhere shown to be behind"
    return "So at equal parameters neither family is shown to be ahead"


def families(records):
    """Questions 5 and 6: our network against the big plain CNN, and parameters against accuracy of two
    families.
    """
    points_of, others = family_points(records)
    first, teacher = records["families"]["plain_256"][0], records["teachers"]["resnet18"][0]
    photos, arguments = photos_of(first), first["model"]["arguments"]
    size, ours = others["residual6"]
    big_size, big = points_of["plain"][-1]
    against = compare(ours, big, photos)
    separated = records["families"]["mobile_256"]  # the widths of the big CNN
    pairs = of_equal_size(points_of["mobile"], points_of["plain"], photos)
    paired = {name.split()[0] for name in pairs}
    return {
        "ours": mean_std(ours),
        "ours_parameters": f"{size:,}",
        "big": mean_std(big),
        "big_parameters": f"{big_size:,}",
        "times": f"{big_size / size:.1f}",
        "against": against.to("the big CNN"),
        "separated": mean_std(accuracies(separated)),
        "separated_parameters": f"{separated[0]['parameters']:,}",
        "separated_against": compare(accuracies(separated), big, photos).to("the big CNN"),
        "conclusion": verdict_text(
            against,
            "The compressed design is smaller and better",
            f"So in so few epochs {big_size / size:.1f} times fewer parameters are not shown to cost "
            "anything",
            "So the parameters that are left out are missed, in so few epochs",
        ),
        "widths": listed([str(width) for width in arguments["widths"]]),
        "hidden": str(arguments["hidden"]),
        "pixels": pixels_text(first),
        "epochs": str(epochs_of(first)),
        "seeds": seeds_text(big),
        "teacher_epochs": str(epochs_of(teacher)),
        "teacher_seeds": seeds_text(others["resnet18"][1]),
        "gains": listed([family_gain(family, line) for family, line in points_of.items()]),
        "pairs": sorted_out(pairs, "the plain one") if pairs else "",
        "family": family_text(pairs),
        "near": str(NEAR),
        "alone": listed(
            [f"{size:,}" for size, _ in points_of["mobile"] if f"{size / 1000:.0f}k" not in paired]
        ),
    }
