"""What the report says about the design of networks."""

import math
from statistics import mean

from architectures import architecture_table, small_cnn_macs
from conclusions import compare, listed, mean_std, points, seeds_text, sorted_out, verdict_text
from readings import accuracies, input_pixels, photos_of, pixels_text


def scratch(records):
    """Our network against the course's student, trained alike."""
    runs = records["scratch"]
    names = {"student": "the course's student", "residual6_narrow": "ours, in no more parameters", "residual6": "ours"}
    first = runs["student"][0]
    count = {name: accuracies(group) for name, group in runs.items()}
    against = {name: compare(count[name], count["student"], photos_of(first)) for name in names if name != "student"}
    conclusion = verdict_text(against["residual6_narrow"], "At equal size the design itself is better", "At equal size and so few epochs the design makes no difference that could be told",
                              "At equal size the design itself is worse")
    return {"rows": [[names[name], name, f"{runs[name][0]['parameters']:,}", mean_std(count[name])] for name in names], "epochs": str(first["settings"]["epochs"]),
            "pixels": str(input_pixels(first)), "seeds": seeds_text(count["student"]), "narrow": against["residual6_narrow"].to("the student"), "wide": against["residual6"].to("it"),
            "conclusion": conclusion, "student": architecture_table(first["model"]), "ours": architecture_table(runs["residual6"][0]["model"])}


def convolutions(arguments):
    """What the wide layers of a 1 MB network are, in words."""
    width, separable = arguments["group_width"], len(arguments["separable"])
    if not separable:
        return "ordinary"
    return f"{'depthwise' if width == 1 else f'groups of {width}'}, {separable} layers"


def one_megabyte(records):
    """Question 4: ordinary, depthwise and grouped convolutions in about as many bytes."""
    runs = records["one_megabyte"]
    first = runs["cnn1mb"][0]
    photos, values = photos_of(first), {name: accuracies(group) for name, group in runs.items()}
    rows = [[f"`{name}`", convolutions(group[0]["model"]["arguments"]), f"{group[0]['parameters']:,}", f"{small_cnn_macs(group[0]['model']['arguments'], input_pixels(group[0])) / 1e6:.1f} M",
             mean_std(values[name])] for name, group in runs.items()]
    grouped = [name for name in runs if name.startswith("group")]
    saved = 1 - small_cnn_macs(runs["dw1mb_4"][0]["model"]["arguments"], input_pixels(first)) / small_cnn_macs(first["model"]["arguments"], input_pixels(first))
    alike = {"`dw1mb_4`": compare(values["dw1mb_4"], values["cnn1mb"], photos), "`group1mb_4_8`": compare(values["group1mb_4_8"], values["cnn1mb"], photos)}
    return {"rows": rows, "seeds": seeds_text(values["cnn1mb"]), "epochs": str(first["settings"]["epochs"]), "pixels": pixels_text(first), "alike": sorted_out(alike, "`cnn1mb`"),
            "fewer": sorted_out({f"`{name}`": compare(values[name], values["cnn1mb"], photos) for name in runs if name not in ("cnn1mb", "dw1mb_4", "group1mb_4_8")}, "it"),
            "grouped": sorted_out({f"`{name}`": compare(values[name], values["dw1mb_4" if "_4_" in name else "dw1mb_3"], photos) for name in grouped}, "the depthwise network of as many layers"),
            "saved": f"{100 * saved:.0f}", "conclusion": "Separating the channels costs accuracy even where the parameters are given back as width" if all(one.verdict < 0 for one in alike.values()) else
            "With the saved parameters given back as width, separated channels are the better use of the bytes" if all(one.verdict > 0 for one in alike.values()) else
            "At equal bytes no kind of convolution wins by itself in so few epochs" if not any(one.verdict for one in alike.values()) else "At equal bytes it depends on how the channels are separated"}


FAMILIES = {"mobile": "depthwise-separable", "plain": "ordinary"}


def family_points(records):
    """{family: [(parameters, accuracies of the seeds)] by rising parameters}, and {name: (parameters, accuracies)} of the two networks that belong to neither."""
    families = {family: sorted((group[0]["parameters"], accuracies(group)) for variant, group in records["families"].items() if variant.startswith(family)) for family in FAMILIES}
    others = {"residual6": records["distillation"]["residual6_scratch"], "resnet18": records["teachers"]["resnet18"]}
    return families, {name: (group[0]["parameters"], accuracies(group)) for name, group in others.items()}


def families(records):
    """Questions 5 and 6: our network against the big plain CNN, and parameters against accuracy of two families."""
    points_of, others = family_points(records)
    first = records["families"]["plain_256"][0]
    photos, (big_size, big) = photos_of(first), points_of["plain"][-1]
    size, ours = others["residual6"]
    pairs = {}
    for parameters, values in points_of["mobile"]:
        near, other = min(points_of["plain"], key=lambda point: abs(math.log(point[0] / parameters)))
        if abs(math.log(near / parameters)) < math.log(1.5):
            pairs[f"{parameters / 1000:.0f}k against {near / 1000:.0f}k"] = compare(values, other, photos)
    verdicts = {one.verdict for one in pairs.values()}
    gains = {family: f"{points(mean(line[-1][1]) - mean(line[0][1]))} points from {line[0][0]:,} to {line[-1][0]:,} parameters" for family, line in points_of.items()}
    against, teacher = compare(ours, big, photos), records["teachers"]["resnet18"][0]
    return {"ours": mean_std(ours), "ours_parameters": f"{size:,}", "big": mean_std(big), "big_parameters": f"{big_size:,}", "times": f"{big_size / size:.1f}", "against": against.to("the big CNN"),
            "conclusion": verdict_text(against, "The compressed design is smaller and better", "So nothing that could be told is lost by leaving the rest out", "So the parameters that are left out are missed, in so few epochs"),
            "widths": listed([str(width) for width in first["model"]["arguments"]["widths"]]), "hidden": str(first["model"]["arguments"]["hidden"]), "pixels": pixels_text(first),
            "epochs": str(first["settings"]["epochs"]), "seeds": seeds_text(big), "teacher_epochs": str(teacher["settings"]["epochs"]), "teacher_seeds": seeds_text(others["resnet18"][1]),
            "gains": listed([f"{text} ({FAMILIES[family]})" for family, text in gains.items()]), "pairs": sorted_out(pairs, "the plain one") if pairs else "",
            "family": "So at equal parameters the depthwise-separable family is ahead" if verdicts == {1} else "So at equal parameters the plain family is ahead" if verdicts == {-1} else
            "So at equal parameters neither family is ahead at every size"}
