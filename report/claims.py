"""What the report's sentences claim, in terms of the summary; the build fails where one does not hold.

A claim is written "experiment: variants sign base; ...": > better than the base, < worse, = no measurable
difference. Another metric than accuracy stands before a variant, as gap/variant; the base "before" is the
network before it was cut or stored. In report/text/ a sentence names its claim: #claim("name")[sentence].
"""

CLAIMS = {
    "storing the model costs nothing measurable": "model: loss = before",
    "averaging views is no measurable gain": "model: averaging = single",
    "8 bits are the best quarter": "compress: pruned factorised factorised_global distilled < quantized_long",
    "8 bits cost nothing measurable": "compress: quantized_long = before",
    "8 bits cost ResNet-18 nothing measurable": "teachers: resnet18_8 = before",
    "8 bits and low rank by worth beat the small network, the others do not": "compress: "
    "quantized_long factorised_global > direct; pruned distilled = direct; factorised < direct",
    "factors by worth beat fewer channels": "lowrank: factors_global_171606 > channels_171606; "
    "factors_global_114810 > channels_114810",
    "factors of equal shares lose": "lowrank: factors_171606 < channels_171606; "
    "factors_114810 < channels_114810",
    "alpha and temperature do not matter measurably": "alpha_temperature: alpha_0 alpha_0.2 alpha_0.5 "
    "alpha_1 temperature_1 temperature_2 temperature_8 temperature_20 course = base",
    "our recipe beats the course's": "recipes: ours > course",
    "only the learning rate matters": "choices: lr > base; no_ema fixed_views dkd = base",
    "fixed views memorise testing photos, random ones do not": "testing: gap/unlabelled_fixed_measured > "
    "labelled_fixed_measured; gap/unlabelled_measured = labelled_measured",
    "testing photos help with random views": "testing: unlabelled_measured > labelled_measured",
    "cuts alone lose accuracy": "pruning: none_0.95 none_0.9 < before",
    "20 epochs a round keep the accuracy": "pruning: finetune20_0.9 = before",
    "5 epochs a round beat no training": "pruning: finetune5_0.95 > none_0.95; finetune5_0.9 > none_0.9",
    "more epochs a round help": "pruning: finetune5_0.9 > finetune1_0.9; finetune20_0.9 > finetune5_0.9",
    "few epochs do not beat the mistake": "pruning: finetune1_0.95 < mistake1_0.95; "
    "finetune1_0.9 = mistake1_0.9; finetune5_0.95 = mistake1_0.95; finetune5_0.9 = mistake1_0.9",
    "20 epochs a round beat the mistake": "pruning: finetune20_0.9 > mistake1_0.9",
    "fine-tuning beats training anew": "pruning: finetune5_0.95 > retrain5_0.95; "
    "finetune5_0.9 > retrain5_0.9",
    "the last shape trained once is as good": "pruning: once_0.95 = finetune5_0.95; once_0.9 = finetune5_0.9",
    "wide8: the mistake beats no training": "pruning_wide8: mistake1_0.95 > none_0.95; "
    "mistake1_0.85 > none_0.85",
    "wide8: one epoch beats the mistake only after large cuts": "pruning_wide8: "
    "finetune1_0.95 < mistake1_0.95; finetune1_0.85 > mistake1_0.85",
    "separated blocks beat ordinary convolutions": "one_megabyte: dw1mb_3 dw1mb_4 group1mb_3_2 "
    "group1mb_3_4 group1mb_3_8 group1mb_4_8 > cnn1mb",
    "the block is what gains": "one_megabyte: one_group > cnn1mb; dw1mb_3 group1mb_3_2 group1mb_3_4 "
    "group1mb_3_8 = one_group",
    "depthwise and grouped are alike": "one_megabyte: group1mb_3_2 group1mb_3_4 group1mb_3_8 = dw1mb_3; "
    "group1mb_4_8 = dw1mb_4",
    "the fourth block adds nothing measurable": "one_megabyte: dw1mb_4 = dw1mb_3",
    "StudentNet is as good as the big CNN": "families: mobile_256 = plain_256",
    "the depthwise family is never behind": "families: mobile_88 = plain_32; mobile_180 = plain_64; "
    "mobile_256 > plain_90; mobile_360 > plain_128",
    "our design is as good as StudentNet": "scratch: residual6_narrow residual6 = student",
    "rounding is free to 5 bits for student, 4 for residual6": "bits: student_8_channel student_6_channel "
    "student_5_channel = before; student_4_channel < before; residual6_8_channel residual6_6_channel "
    "residual6_5_channel residual6_4_channel = before; residual6_3_channel < before",
    "QAT holds residual6 at 3 bits": "bits: residual6_3_channel_qat = before; "
    "residual6_2_channel_qat < before",
    "QAT costs student a little": "bits: student_4_channel_qat student_3_channel_qat "
    "student_2_channel_qat < before",
    "more weights at fewer bits pay": "equal_bytes: stored_392 stored_543 stored_737 > stored_251",
    "blurred views do not help": "resolution: blurred_measured < standard_measured; "
    "reduced/blurred_measured = standard_measured",
}
SIGNS = {">": 1, "=": 0, "<": -1}


def broken(summary):
    """What no longer holds, as a sentence about the first claim that fails; None if all hold."""
    for name, text in CLAIMS.items():
        group, _, parts = text.partition(": ")
        for part in parts.split(";"):
            *variants, sign, base = part.split()
            for variant in variants:
                metric, _, variant = variant.rpartition("/")
                one = summary[group][variant]
                found = one if group == "model" else one[metric or "accuracy"]["vs"][base]
                if found["verdict"] != SIGNS[sign]:
                    return (
                        f'the claim "{name}" of the report no longer holds: {group}: {variant} {sign} {base} '
                        f"is {100 * found['mean']:+.2f} ± {100 * found['bound']:.2f} points; "
                        "rewrite its sentence in report/text/ and its line in report/claims.py"
                    )
    return None
