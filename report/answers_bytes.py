"""What the report says about bytes: ways to save them, and what they buy."""

import statistics

from conclusions import compare, listed, mean_std, percent, points, seeds_text, sorted_out, verdict_text
from readings import PUBLISHED, accuracies, epochs_of, file_bytes, input_pixels, mean_bytes, photos_of, pixels_text


def compress(records):
    """Question 1: one network to a quarter of its bytes in four ways, the small network trained directly, and what few bits do to a ResNet-18."""
    runs = records["compress"]
    big, direct, photos = runs["big"], runs["direct"], photos_of(runs["big"][0])
    before = {"quantized": [record["validation_accuracy_before"] for record in runs["quantized"]],
              **{name: [record["rounds"][-1]["after_cut"] for record in runs[name]] for name in ("pruned", "factorised", "factorised_global")}}
    epochs = {name: epochs_of(group[0]) for name, group in runs.items() if name != "quantized"}
    parameters = {name: group[0]["rounds"][-1]["parameters"] if "rounds" in group[0] else group[0].get("parameters", big[0]["parameters"]) for name, group in runs.items()}
    ways = {"quantized": f"{runs['quantized'][0]['bits']}-bit quantization", "pruned": "pruning, fine-tuned", "factorised": "low rank, fine-tuned", "factorised_global": "the same, ranks by worth", "distilled": "distilled into half the width"}
    names = {"big": "the big network", **ways, "direct": "half the width, labels only"}
    rows = [[names[name], f"{parameters[name]:,}", f"{mean_bytes(runs[name]) if name == 'quantized' else 4 * parameters[name]:,}",
             str(epochs["big"]) if name in ("big", "quantized") else str(epochs["direct"]) if name == "direct" else f"{epochs['big']} + {epochs[name]}",
             mean_std(before[name]) if name in before else "–", mean_std(accuracies(runs[name]))] for name in names]
    short = {"quantized": "quantization", "pruned": "pruning", "factorised": "low rank", "factorised_global": "low rank by worth", "distilled": "distillation"}
    pruned = compare(accuracies(runs["pruned"]), accuracies(direct), photos)
    teacher = records["teachers"]
    stored = {bits: teacher[f"resnet18_{bits}"] for bits in (16, 8)}
    whole = [record["validation_accuracy_before"] for record in stored[8]]
    return {"rows": rows, "seeds": seeds_text(big), "pixels": pixels_text(big[0]), "bits": str(runs["quantized"][0]["bits"]), "epochs": str(epochs["big"]), "direct_epochs": str(epochs["direct"]),
            "parameters": rows[0][1], "against": sorted_out({short[name]: compare(accuracies(runs[name]), accuracies(direct), photos) for name in short}, "that network"),
            "quantized": sorted_out({short[name]: compare(accuracies(runs[name]), accuracies(runs["quantized"]), photos) for name in ("pruned", "factorised", "factorised_global", "distilled")}, "quantization"),
            "loss": compare(accuracies(runs["quantized"]), before["quantized"], photos).to("the big network itself"),
            "pruned": verdict_text(pruned, "Yes: what the larger network has learned survives the cut", "That cannot be told from these records, and the larger network costs more in every epoch before the cut",
                                   "No: the epochs are better spent on the small network itself"),
            "teacher_rows": [["32", f"{stored[8][0]['raw_bytes']:,}", mean_std(whole)], *([str(bits), f"{mean_bytes(stored[bits]):,}", mean_std(accuracies(stored[bits]))] for bits in (16, 8))],
            "teacher_epochs": str(teacher["resnet18"][0]["settings"]["epochs"]), "teacher_seeds": seeds_text(whole),
            "teacher": sorted_out({f"{bits} bits": compare(accuracies(stored[bits]), whole, photos) for bits in (16, 8)}, "32")}


def equal_bytes(records):
    """Few weights of many bits or many weights of few, in as many bytes."""
    runs = records["equal_bytes"]
    sizes = sorted(int(variant.removeprefix("float_")) for variant in runs if variant.startswith("float_"))
    whole, stored = ({size: runs[f"{kind}_{size}"] for size in sizes} for kind in ("float", "stored"))
    first, photos = sizes[0], photos_of(whole[sizes[0]][0])
    rows = [[f"{whole[size][0]['parameters']:,}", str(stored[size][0]["bits"]), f"{mean_bytes(stored[size]):,}", mean_std(accuracies(whole[size])), mean_std(accuracies(stored[size]))] for size in sizes]
    found = {f"{whole[size][0]['parameters']:,} weights at {stored[size][0]['bits']} bits": compare(accuracies(stored[size]), accuracies(stored[first]), photos) for size in sizes[1:]}
    floats = {f"{whole[size][0]['parameters']:,} weights": compare(accuracies(whole[size]), accuracies(whole[first]), photos) for size in sizes[1:]}
    verdicts = {one.verdict for one in found.values()}
    return {"rows": rows, "seeds": seeds_text(whole[first]), "pixels": pixels_text(whole[first][0]), "epochs": str(whole[first][0]["settings"]["epochs"]),
            "more_epochs": str(stored[first][0]["fine_tuning"]["settings"]["epochs"]), "found": sorted_out(found, f"{whole[first][0]['parameters']:,} at {stored[first][0]['bits']}"),
            "floats": sorted_out(floats, f"{whole[first][0]['parameters']:,}"),
            "conclusion": "In these records more weights of fewer bits pay" if verdicts == {1} else "In these records the bytes are better spent on bits" if verdicts == {-1} else
            "Whether more weights of fewer bits pay depends on how far one goes" if 1 in verdicts else "That more weights of fewer bits pay is not shown by trainings of this length"}


def bits_curves(runs):
    """{(network, granularity, trained): [(bits, bytes, accuracies of the seeds)] by falling bits}, and the accuracy of 32 bits by network."""
    curves, whole = {}, {}
    for variant, group in runs.items():
        network, *grid = variant.split("_")
        if grid:
            key = network, grid[1], len(grid) == 3
            curves.setdefault(key, []).append((int(grid[0]), round(statistics.mean(map(file_bytes, group))), accuracies(group)))
            whole.setdefault(network, [record["validation_accuracy_before"] for record in group])
    return {key: sorted(curve, reverse=True) for key, curve in curves.items()}, whole


def bits(records):
    """Bytes against accuracy down to 2 bits per weight."""
    runs = records["bits"]
    curves, whole = bits_curves(runs)
    networks = tuple(whole)
    first = runs[f"{networks[0]}_8_channel"][0]
    photos = first["validation_photos"]
    rows = []
    for key, curve in curves.items():
        by_bits = {number: (size, mean_std(values)) for number, size, values in curve}
        rows.append([key[0], f"per {key[1]}", "trained" if key[2] else "rounded", *(f"{by_bits[number][1]}" if number in by_bits else "–" for number in (8, 6, 5, 4, 3, 2))])

    def at(network, number, granularity="channel", trained=False):
        return next(values for found, _, values in curves[network, granularity, trained] if found == number)

    eight = {network: compare(at(network, 8), whole[network], photos) for network in networks}

    def down_to(network, trained):
        """The fewest bits down to which no loss can be told, as text."""
        fine = []
        for number, _, values in curves[network, "channel", trained]:
            if compare(values, whole[network], photos).verdict < 0:
                break
            fine.append(number)
        return f"{fine[-1]} bits for {network}" if fine else f"none of these numbers of bits for {network}"

    trained = [f"{points(statistics.mean(at(network, number, trained=True)) - statistics.mean(at(network, number)))} at {number} bits" for network in networks[:1] for number in (4, 3, 2)]
    sizes = {network: {number: size for number, size, _ in curves[network, "channel", False]} for network in networks}
    published = PUBLISHED["eight_bits"]
    return {"rows": rows, "networks": list(networks), "whole": {network: mean_std(whole[network]) for network in networks}, "seeds": seeds_text(whole[networks[0]]),
            "epochs": str(first["model"]["training"]["epochs"]), "pixels": str(input_pixels(first)),
            "more_epochs": str(runs[f"{networks[0]}_4_channel_qat"][0]["fine_tuning"]["settings"]["epochs"]),
            "eight": [f"At 8 bits per channel `{network}` is {eight[network].to('the network at 32 bits')}." for network in networks],
            "holds": "holds here and can be carried further" if all(one.verdict >= 0 for one in eight.values()) else "does not hold for every network here",
            "harmless": listed([down_to(network, False) for network in networks]), "smallest": listed([down_to(network, True) for network in networks]),
            "trained": listed(trained), "first": networks[0], "granularity": [f"for `{network}` a grid per channel is {compare(at(network, 4), at(network, 4, 'tensor'), photos).to('one per tensor')}" for network in networks],
            "sizes": listed([f"{sizes[network][8] / 1000:.0f} kB at 8 bits to {sizes[network][2] / 1000:.0f} kB at 2 ({network})" for network in networks]),
            "published": listed([f"{percent(before)} to {percent(after)} % ({name})" for name, (before, after) in published.items()])}
