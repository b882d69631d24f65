"""What the report says about bytes: ways to save them, and what they buy."""

import statistics

from conclusions import (
    cell,
    compare,
    listed,
    mean_std,
    percent,
    points,
    seeds_text,
    sorted_out,
    verdict_text,
    verdicts,
)
from readings import (
    PUBLISHED,
    accuracies,
    epochs_of,
    file_bytes,
    input_pixels,
    mean_bytes,
    photos_of,
    pixels_text,
)

SHORT = {  # the ways to a quarter of the bytes, as conclusions call them
    "quantized": "quantization",
    "pruned": "pruning",
    "factorised": "low rank of equal shares",
    "factorised_global": "low rank by worth",
    "distilled": "distillation",
}


def compress_names(runs):
    """{variant: how the table calls it}, in the table's order."""
    bits = runs["quantized"][0]["bits"]
    return {
        "big": "the big network",
        "big_long": "the same, twice as long",
        "quantized": f"the first at {bits} bits",
        "quantized_long": f"the second at {bits} bits",
        "pruned": "the first, cut by γ",
        "factorised": "in factors, equal shares",
        "factorised_global": "in factors, by worth",
        "distilled": "half the width, distilled",
        "direct": "half the width, labels only",
    }


def compress_row(name, text, runs):
    """Row of the table: way, parameters, bytes, epochs, accuracy right after a cut, accuracy in the end."""
    group, big = runs[name], runs["big"]
    last = group[0]["rounds"][-1] if "rounds" in group[0] else group[0]
    parameters = last.get("parameters", big[0]["parameters"])
    stored = name.startswith("quantized")
    trained = runs[name.replace("quantized", "big")] if stored else group
    epochs = str(epochs_of(trained[0]))
    if not (stored or name in ("big", "big_long", "direct")):
        epochs = f"{epochs_of(big[0])} + {epochs}"
    size = mean_bytes(group) if stored else 4 * parameters
    after_cut = (
        mean_std([record["rounds"][-1]["after_cut"] for record in group]) if "rounds" in group[0] else "–"
    )
    return [text, f"{parameters:,}", f"{size:,}", epochs, after_cut, mean_std(accuracies(group))]


def compress(records):
    """Question 1: one network to a quarter of its bytes in four ways, the small one trained directly, few
    bits for a ResNet-18.
    """
    runs = records["compress"]
    big, direct = runs["big"], runs["direct"]
    photos = photos_of(big[0])
    rows = [compress_row(name, text, runs) for name, text in compress_names(runs).items()]

    def compared(base, names):
        """{way: Comparison with BASE}; quantization has had the epochs that the others have in all."""
        return {
            SHORT[name]: compare(
                accuracies(runs["quantized_long" if name == "quantized" else name]),
                accuracies(runs[base]),
                photos,
            )
            for name in names
        }

    against = compared("direct", SHORT)
    shares, by_worth = (
        runs[name][0]["plan"][-1]["arguments"]["ranks"] for name in ("factorised", "factorised_global")
    )
    starved = [name for name, rank in shares.items() if rank == 1]
    return {
        "rows": rows,
        "seeds": seeds_text(big),
        "pixels": pixels_text(big[0]),
        "bits": str(runs["quantized"][0]["bits"]),
        "chance": percent(1 / len(big[0]["model"]["class_names"]), 1),
        "epochs": str(epochs_of(big[0])),
        "all_epochs": str(epochs_of(direct[0])),
        "parameters": rows[0][1],
        "against": sorted_out(against, "that small network"),
        "quantized": sorted_out(
            compared("quantized_long", [name for name in SHORT if name != "quantized"]), "quantization"
        ),
        "longer": compare(accuracies(runs["big_long"]), accuracies(big), photos).to(f"{epochs_of(big[0])}"),
        "loss": compare(accuracies(runs["quantized_long"]), accuracies(runs["big_long"]), photos).to(
            "the network itself"
        ),
        "starved": listed([f"`{name}`" for name in starved]),
        "starved_are_whole": not by_worth.keys() & set(starved),
        "pruned": verdict_text(
            against["pruning"],
            "Yes: what the larger network has learned survives the cut",
            "That cannot be told from these records, and the larger network costs more in every epoch "
            "before the cut",
            "No: the epochs are better spent on the small network itself",
        ),
        **few_bits(records["teachers"], photos),
    }


def few_bits(runs, photos):
    """What 16 and 8 bits do to the ResNet-18."""
    stored = {bits: runs[f"resnet18_{bits}"] for bits in (16, 8)}
    whole = [record["validation_accuracy_before"] for record in stored[8]]
    rows = [["32", f"{stored[8][0]['raw_bytes']:,}", mean_std(whole)]]
    rows += [
        [str(bits), f"{mean_bytes(group):,}", mean_std(accuracies(group))] for bits, group in stored.items()
    ]
    agreement = []
    for bits in stored:
        shares = [record["agreement"]["validation"] for record in runs[f"resnet18_{bits}_agreement"]]
        agreement.append(f"{mean_std(shares)} % at {bits} bits")
    return {
        "teacher_rows": rows,
        "teacher_epochs": str(epochs_of(runs["resnet18"][0])),
        "teacher_seeds": seeds_text(whole),
        "teacher_agreement": listed(agreement),
    }


def equal_bytes(records):
    """Few weights of many bits or many weights of few, in as many bytes."""
    runs = records["equal_bytes"]
    sizes = sorted(int(variant.removeprefix("float_")) for variant in runs if variant.startswith("float_"))
    whole, stored = ([runs[f"{kind}_{size}"] for size in sizes] for kind in ("float", "stored"))
    first, first_stored = whole[0], stored[0]
    photos = photos_of(first[0])
    rows, found, floats = [], {}, {}
    for trained, packed in zip(whole, stored):
        parameters, bits = f"{trained[0]['parameters']:,}", packed[0]["bits"]
        before, after = accuracies(trained), accuracies(packed)
        rows.append([parameters, str(bits), f"{mean_bytes(packed):,}", mean_std(before), mean_std(after)])
        if trained is not first:
            found[f"{parameters} at {bits} bits"] = compare(after, accuracies(first_stored), photos)
            floats[parameters] = compare(before, accuracies(first), photos)
    least = f"{first[0]['parameters']:,}"
    larger = [mean_bytes(packed) / mean_bytes(first_stored) - 1 for packed in stored[1:]]
    return {
        "rows": rows,
        "seeds": seeds_text(first),
        "pixels": pixels_text(first[0]),
        "epochs": str(epochs_of(first[0])),
        "more_epochs": str(epochs_of(first_stored[0]["fine_tuning"])),
        "found": sorted_out(found, f"{least} at {first_stored[0]['bits']}"),
        "floats": sorted_out(floats, least),
        "conclusion": bits_or_weights(verdicts(found)),
        "larger": f"{percent(min(larger), 0)} to {percent(max(larger), 0)}",
    }


def bits_or_weights(found):
    """The conclusion from the set of verdicts on networks of more weights and fewer bits."""
    if found == {1}:
        return "In these records more weights at fewer bits pay"
    if found == {-1}:
        return "In these records the bytes are better spent on bits"
    if 1 in found:
        return "Whether more weights at fewer bits pay depends on how far one goes"
    return "That more weights at fewer bits pay is not shown by trainings of this length"


def bits_curves(runs):
    """Accuracies of the seeds at every number of bits, and at 32 bits.

    {(network, granularity, trained): [(bits, bytes, accuracies)] by falling bits}, {network: accuracies at 32
    bits}
    """
    curves, whole = {}, {}
    for variant, group in runs.items():
        network, *grid = variant.split("_")
        if grid:
            key = network, grid[1], len(grid) == 3
            size = round(statistics.mean(map(file_bytes, group)))
            curves.setdefault(key, []).append((int(grid[0]), size, accuracies(group)))
            whole.setdefault(network, [record["validation_accuracy_before"] for record in group])
    return {key: sorted(curve, reverse=True) for key, curve in curves.items()}, whole


def bits_row(key, curve):
    """Row of the table: network, grid, how it came to its bits, accuracy at 8 to 2 bits."""
    network, granularity, trained = key
    accuracy = {number: mean_std(values) for number, _, values in curve}
    cells = [accuracy.get(number, "–") for number in (8, 6, 5, 4, 3, 2)]
    return [network, f"per {granularity}", "trained" if trained else "rounded", *cells]


def fewest_bits(network, curve, whole, photos):
    """The fewest bits down to which no loss can be told, and the loss below them, as text."""
    fine, below = [], ""
    for number, _, values in curve:
        against = compare(values, whole, photos)
        if against.verdict < 0:
            below = f" ({cell(against)} points at {number})"
            break
        fine.append(number)
    least = f"{fine[-1]} bits" if fine else "none of these numbers of bits"
    return f"{least} for {network}{below}"


def bits(records):
    """Bytes against accuracy down to 2 bits per weight."""
    runs = records["bits"]
    curves, whole = bits_curves(runs)
    networks = list(whole)
    first = runs[f"{networks[0]}_8_channel"][0]
    photos = first["validation_photos"]

    def at(network, number, granularity="channel", trained=False):
        """Accuracies of the seeds."""
        return next(values for found, _, values in curves[network, granularity, trained] if found == number)

    def gain(network, number):
        """Of training through the rounding."""
        return statistics.mean(at(network, number, trained=True)) - statistics.mean(at(network, number))

    def losses(network):
        """At how many bits training through the rounding is shown to end below 32 bits, as text."""
        found = {
            number: compare(values, whole[network], photos)
            for number, _, values in curves[network, "channel", True]
        }
        return (
            f"{network} at "
            f"{listed([f'{number} ({cell(one)})' for number, one in found.items() if one.verdict < 0])}"
        )

    eight = {
        f"`{network}` per {grid}": compare(at(network, 8, grid), whole[network], photos)
        for network in networks
        for grid in ("channel", "tensor")
    }
    per_channel = {network: compare(at(network, 4), at(network, 4, "tensor"), photos) for network in networks}
    sizes = []
    for network in networks:
        kilobytes = {number: size / 1000 for number, size, _ in curves[network, "channel", False]}
        sizes.append(f"{kilobytes[8]:.0f} kB at 8 bits to {kilobytes[2]:.0f} kB at 2 ({network})")
    published = [
        f"{percent(before)} to {percent(after)} % ({name})"
        for name, (before, after) in PUBLISHED["eight_bits"].items()
    ]
    return {
        "rows": [bits_row(key, curve) for key, curve in curves.items()],
        "networks": networks,
        "whole": {network: mean_std(values) for network, values in whole.items()},
        "seeds": seeds_text(whole[networks[0]]),
        "epochs": str(first["model"]["training"]["epochs"]),
        "pixels": str(input_pixels(first)),
        "more_epochs": str(epochs_of(runs[f"{networks[0]}_4_channel_qat"][0]["fine_tuning"])),
        "eight": sorted_out(eight, "the network at 32 bits"),
        "most": points(min(one.difference for one in eight.values())),
        "harmless": listed(
            [
                fewest_bits(network, curves[network, "channel", False], values, photos)
                for network, values in whole.items()
            ]
        ),
        "losses": listed([losses(network) for network in networks]),
        "trained": listed([f"{points(gain(networks[0], number))} at {number} bits" for number in (4, 3, 2)]),
        "first": networks[0],
        "granularity": [
            f"for `{network}` a grid per channel is {one.to('one per tensor')}"
            for network, one in per_channel.items()
        ],
        "sizes": listed(sizes),
        "published": listed(published),
    }
