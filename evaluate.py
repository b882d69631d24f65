"""Measure a model file on labelled photos: accuracy by class and resolution, confusion, calibration.

    python evaluate.py model.bin food-11
    python evaluate.py runs/student/best.pt food-11 --reduce 64 --record results/evaluation.json
    python evaluate.py model.bin food-11 --tta
    python evaluate.py model.bin food-11 --html report.html
    python evaluate.py runs/kd/best.pt food-11 --teacher model.bin

A photo is small when its shorter side is below the network's input size. --reduce measures every photo a
second time, scaled down to this many pixels first: this shows whether the network relies on sharpness.
--teacher counts how often both networks predict the same class, on validation/ and on the testing/ photos
beside it. --tta measures the predictions of `inference.py --tta`. --html writes a page with charts and the
most confident mistakes, in one file.
"""

from dataclasses import replace
from pathlib import Path

import torch

from compression.command_line import UserError, number, parser, pick_device, run
from compression.data.plausibility import add_normalisation, settle_normalisation
from compression.data.tta import add_tta
from compression.files.atomic import check_distinct, check_output, write_text
from compression.files.loading import load_model
from compression.files.records import provenance, write_record
from compression.options import add_cache, cache_folder, classes_of, validation_accuracy
from compression.pages.report import report_page
from compression.stages.evaluating import agreement, class_probabilities, load_sizes, measure
from compression.training.teachers import check_normalisations, read_teacher, settle_teacher
from dataset import list_labelled, list_testing_beside


def read_options(argv):
    options = parser(__doc__)
    add = options.add_argument
    add("model", type=Path, help="model file or checkpoint")
    add("data", type=Path, help="folder with validation/")
    text = "also measure every photo scaled down to this size first"
    add("--reduce", type=number(int, 16, 4096), metavar="PIXELS", help=text)
    add_tta(options)
    text = "also measure how often the model agrees with this one: model file, checkpoint or state_dict"
    add("--teacher", type=Path, metavar="FILE", help=text)
    add_cache(options)
    add_normalisation(options)
    add_normalisation(options, "--teacher-normalisation", "the teacher")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--record", type=Path, help="also write a JSON record there")
    text = (
        "also write a page with charts and copies of the most confident mistakes; with the training curve if "
        "the run's record.json is beside the model"
    )
    add("--html", type=Path, metavar="PAGE", help=text)
    options = options.parse_args(argv)
    for read in (options.model, options.teacher):
        check_distinct(read, options.record, options.html)
    if options.teacher_normalisation != "auto" and not options.teacher:
        raise UserError("--teacher-normalisation needs --teacher; add it or leave the normalisation out")
    return options


def main(argv=None):
    options = read_options(argv)
    device, model = pick_device(options.device), load_model(options.model)
    preprocessing, tta, cache = model.description.preprocessing, options.tta, cache_folder(options)
    seen = min(preprocessing.size, preprocessing.detail or preprocessing.size)
    if options.reduce and (preprocessing.resize == "course" or options.reduce >= seen):
        raise UserError(
            f"--reduce {options.reduce} does not reduce the input of {options.model} ({seen} px, resize rule "
            f"{preprocessing.resize}); use fewer pixels, or leave --reduce out"
        )
    for output in filter(None, (options.record, options.html)):
        check_output(output)
    names, _, whose = classes = classes_of(options, model)
    teacher = None
    if options.teacher:
        channels, size = preprocessing.channels, preprocessing.size
        teacher = read_teacher(options.teacher, names, device, channels, unknown_size=size, whose=whose)
        check_normalisations([teacher], options.teacher_normalisation)
    model = settle_normalisation(model, options.normalisation, validation_accuracy(options, device))
    preprocessing = model.description.preprocessing
    listing = list_labelled(options.data, "validation", *classes)
    photos, reduced = load_sizes(listing, preprocessing, tta, cache), None
    if options.reduce:
        reduced = load_sizes(listing, replace(preprocessing, detail=options.reduce), tta, cache, silent=True)
    result, probabilities = measure(model, listing, photos, device, tta, reduced)
    if reduced:
        result["reduced_to"] = options.reduce
    compared = {}
    if teacher:
        compared["validation"] = photos, probabilities
        teacher = settle_teacher(teacher, options.teacher_normalisation, photos[0], preprocessing, device)
        if testing := list_testing_beside(options.data):
            network = model.build().to(device, memory_format=torch.channels_last)
            part = load_sizes(testing, preprocessing, tta, cache)
            compared["testing"] = part, class_probabilities(network, part, preprocessing, device, tta)
        result["agreement"] = {
            split: agreement(predicted, teacher, part, preprocessing, device, tta)
            for split, (part, predicted) in compared.items()
        }
    if options.record:
        origin = provenance(device, data={"validation": photos[0].fingerprint})
        described = {"model": model.description.to_dict(), "bits": model.bits}
        write_record(options.record, origin | described | result)
    if options.html:
        write_text(options.html, report_page(model, result, probabilities, photos[0], listing))
    print_result(model.description, result, options)
    for split, (part, _) in compared.items():
        share, count = result["agreement"][split], len(part[0])
        print(f"  {share:.4f}  agreement with {options.teacher} on {count:,} {split} photos")
    for output in filter(None, (options.record, options.html)):
        print(f"wrote {output}")
    return 0


def print_result(description, result, options):
    size = description.preprocessing.size
    print(
        f"{description.architecture}, {size} px, {result['photos']:,} photos: accuracy "
        f"{result['accuracy']:.4f}, balanced accuracy {result['balanced_accuracy']:.4f}, "
        f"cross-entropy {result['cross_entropy']:.4f}, calibration error {result['calibration_error']:.4f}"
    )
    for name, text in (
        ("accuracy_of_small", f"shorter side below {size} px"),
        ("accuracy_of_larger", "the other photos"),
        ("accuracy_reduced", f"all photos, first reduced to {options.reduce} px"),
    ):
        if result.get(name) is not None and (result["small_photos"] or name == "accuracy_reduced"):
            print(f"  {result[name]:.4f}  {text}")
    classes = result["class_accuracy"]
    for (name, accuracy), row in zip(classes.items(), result["confusion"]):
        count, other = max((count, other) for other, count in zip(classes, row) if other != name)
        shown = "none  " if accuracy is None else f"{accuracy:.4f}"
        most = f"; most often predicted as {other}, {count} times" if count else ""
        print(f"  {shown}  {name} ({sum(row)} photos{most})")


if __name__ == "__main__":
    run(main)
