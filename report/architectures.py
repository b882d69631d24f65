"""The layers of a network as a table, from the arguments that a record stores."""

DEFAULTS = {  # of models.py, which earlier records leave out
    "student": {"widths": (16, 32, 64, 128, 256, 256, 256, 256)},
    "residual6": {"stem": (16, 32), "widths": (64, 64, 64, 104, 104, 104), "hidden": (96, 160, 160, 256, 304, 304), "pools": (1, 0, 0, 1, 0, 0), "head": 256}}


def stages(model):
    """Rows (stage, what it is, output channels, resolution divided by) of a `student` or `residual6` in a record."""
    arguments, rows, divided = {**DEFAULTS[model["architecture"]], **model["arguments"]}, [], 1
    if "stem" in arguments:
        for index, width in enumerate(arguments["stem"]):
            divided *= 2
            rows.append((f"stem {index + 1}", "3×3, stride 2", width, divided))
        before = arguments["stem"][-1]
        for index, (width, hidden, pool) in enumerate(zip(arguments["widths"], arguments["hidden"], arguments["pools"])):
            divided *= 2 if pool else 1
            residual = arguments.get("residual")
            adds = residual[index] if residual else not pool and before == width
            text = f"{'pool, ' if pool else ''}1×1 to {hidden}, depthwise 3×3, 1×1{', + input' if adds else ''}"
            rows.append((f"block {index + 1}", text, width, divided))
            before = width
        rows.append(("head", "1×1, mean over positions", arguments["head"], None))
    else:
        for index, width in enumerate(arguments["widths"]):
            pool = index < 4
            divided *= 2 if pool else 1
            rows.append((f"stage {index}", ("depthwise 3×3, 1×1" if index else "3×3") + (", pool" if pool else ""), width, divided))
        rows.append(("head", "mean over positions", rows[-1][2], None))
    return [*rows, ("classifier", "linear", arguments["num_classes"], None)]


def architecture_table(model):
    """`stages` as rows of text for an input of the record's size."""
    pixels = model["preprocessing"]["size"]
    return [[name, text, f"{width:,}", f"{-(-pixels // divided)}²" if divided else "1"] for name, text, width, divided in stages(model)]
