"""The layers of a network as a table, from the arguments that a record stores."""

DEFAULTS = {  # of models.py, which earlier records leave out
    "student": {"widths": (16, 32, 64, 128, 256, 256, 256, 256)},
    "slim9": {"widths": (19, 38, 76, 76, 76, 152, 152, 152, 152), "hidden": 128, "swish_from": 5},
    "resnet18": {"widths": (64, 128, 256, 512)},
    "residual6": {
        "stem": (16, 32),
        "widths": (64, 64, 64, 104, 104, 104),
        "hidden": (96, 160, 160, 256, 304, 304),
        "pools": (1, 0, 0, 1, 0, 0),
        "head": 256,
    },
}


def residual_stages(arguments):
    """Rows of a `residual6`."""
    rows, strides, pools = [], 1, 1
    for index, width in enumerate(arguments["stem"]):
        strides *= 2
        rows.append((f"stem {index + 1}", "3×3, stride 2", width, (strides, pools)))
    before = arguments["stem"][-1]
    for index, (width, hidden, pool) in enumerate(
        zip(arguments["widths"], arguments["hidden"], arguments["pools"])
    ):
        pools *= 2 if pool else 1
        residual = arguments.get("residual")
        adds = residual[index] if residual else not pool and before == width
        text = f"{'pool, ' if pool else ''}1×1 to {hidden}, depthwise 3×3, 1×1{', + input' if adds else ''}"
        rows.append((f"block {index + 1}", text, width, (strides, pools)))
        before = width
    return [*rows, ("head", "1×1, mean over positions", arguments["head"], None)]


def depthwise_stages(arguments):
    """Rows of a `student` or one of its relatives."""
    rows, pools, swish = [], 1, arguments.get("swish_from")
    for index, width in enumerate(arguments["widths"]):
        pool = index < 4
        pools *= 2 if pool else 1
        text = "depthwise 3×3, 1×1" if index else "3×3"
        if pool:
            text += ", pool"
        if swish is not None and index >= swish:
            text += ", swish"
        rows.append((f"stage {index}", text, width, (1, pools)))
    rows.append(("head", "mean over positions", rows[-1][2], None))
    hidden = arguments.get("hidden") or []
    if not isinstance(hidden, (list, tuple)):
        hidden = [hidden] * 2
    return rows + [(f"hidden {index + 1}", "linear, BN", width, None) for index, width in enumerate(hidden)]


def resnet_stages(arguments):
    """Rows of torchvision's ResNet-18."""
    widths = arguments["widths"]
    rows = [("stem", "7×7, stride 2, pool", widths[0], (4, 1))]
    for index, width in enumerate(widths):
        text = f"2 blocks of two 3×3{', stride 2' if index else ''}, + input"
        rows.append((f"stage {index + 1}", text, width, (4 * 2**index, 1)))
    return [*rows, ("head", "mean over positions", widths[-1], None)]


def stages(model):
    """Rows (stage, what it is, output channels, resolution divided by) of a network of DEFAULTS in a record.

    The resolution is divided by (strides, pools): padded convolutions round it up, 2x2 pools down; None is a
    single position.
    """
    name = model["architecture"]
    arguments = {**DEFAULTS[name], **model["arguments"]}
    rows_of = {"residual6": residual_stages, "resnet18": resnet_stages}.get(name, depthwise_stages)
    return [*rows_of(arguments), ("classifier", "linear", arguments["num_classes"], None)]


def architecture_table(model):
    """`stages` as rows of text for an input of the record's size; neighbours that are alike share a row."""
    pixels, table = model["preprocessing"]["size"], []
    for name, *what in stages(model):
        if table and table[-1][1] == what and name[-1].isdigit():
            table[-1][0] = f"{table[-1][0].partition('–')[0]}–{name.split()[-1]}"
        else:
            table.append([name, what])
    return [
        [name, text, f"{width:,}", f"{-(-pixels // divided[0]) // divided[1]}²" if divided else "1"]
        for name, (text, width, divided) in table
    ]


def small_cnn_macs(arguments, pixels):
    """Multiply-accumulates of one photo in a network of the 1 MB question (networks.SmallCNN), without torch."""
    ordinary, side, before, total = len(arguments["convs"]), pixels, arguments["in_channels"], 0
    for index, after in enumerate([*arguments["convs"], *arguments["separable"]]):
        if index < ordinary:
            weights = 9 * before * after
        else:
            weights = 9 * before * (arguments["group_width"] or before) + before * after
        total += side**2 * weights
        side //= 2 if index in arguments["pool_after"] else 1
        before = after
    hidden, classes = arguments["hidden"], arguments["num_classes"]
    return total + (16 * before * hidden + hidden * classes if hidden else 16 * before * classes)
