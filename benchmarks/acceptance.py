"""The bars that the operators and the head are held to, looked up in the benchmarks' rows.

    python -m benchmarks.acceptance ROWS.csv

Every figure is printed, met or not.
"""

import sys
from typing import NamedTuple

from . import harness


class Bar(NamedTuple):
    """A figure of rows of one case: ``value(rows)`` with rows by variant; ``least`` says which way is better."""

    what: str
    benchmark: str
    case: str
    value: object
    bar: float
    dream: float
    least: bool = True  # the bar is a minimum
    unit: str = "x"


def faster(variant, peer):
    return lambda rows: rows[peer]["ms"] / rows[variant]["ms"]


def share(variant, peer, column="ms"):
    return lambda rows: rows[variant][column] / rows[peer][column]


def column(variant, name):
    return lambda rows: rows[variant][name]


HEAD = "batch 1, 10 % active"
STEP = "2 images, 30 boxes each"
SAMPLED, EXACT = "sampled, min_iou 0.3", "exact, min_iou 0.3"


def bars():
    table = []
    for size in ("200x336", "100x168", "50x84"):
        for name in ("ga_scope", "ga_scope, channels_last"):
            what = f"{name}: deform_conv2d {size}"
            table += [
                Bar(what, "deform_conv2d", f"forward 1x{size}", faster(name, "torchvision"), 5, 8),
                Bar(f"{what}, backward", "deform_conv2d", f"backward 1x{size}", faster(name, "torchvision"), 3, 6),
            ]
    for name in ("ga_scope", "ga_scope, channels_last"):
        case = "forward 1x200x336"
        what = f"{name}: deform_conv2d 200x336, extra memory"
        table.append(Bar(what, "deform_conv2d", case, column(name, "extra_mb"), 20, 4, False, "MB"))
    for percent, bar, dream in ((10, 0.7, 1.0), (3, 0.55, 0.85)):
        for name in ("ga_scope", "ga_scope, channels_last"):
            case = f"200x336 at {percent} %"
            what = f"{name}: masked_conv2d at {percent} %, efficiency"
            table.append(Bar(what, "masked_conv2d", case, column(name, "efficiency"), bar, dream, True, ""))
    for name in ("ga_scope", "ga_scope, channels_last"):
        value = faster(f"{name} at 10 %", "torchvision everywhere")
        what = f"{name}: feature adaption at 10 %"
        table.append(Bar(what, "feature_adaption", "five levels, 89523 locations", value, 60, 100))
    for name, peer in (("GA-Faster R-CNN", "torchvision Faster R-CNN"), ("ScopeNet", "torchvision FCOS")):
        value = share(f"{name}, optimized, bfloat16", peer)
        what = f"{name} R-50, optimized, bfloat16: time of {peer}"
        table.append(Bar(what, "inference", "R-50 FPN, one image", value, 0.3, 0.15, False))
    case, dense = "forward 1x100x168 by dtype, channels_last", "deform_conv2d 100x168, of dense conv2d"
    for dtype, bar, dream in (("float32", 1.25, 1.1), ("bfloat16", 3, 2)):
        value = share(dtype, f"conv2d {dtype}")
        table.append(Bar(f"{dense}, {dtype}, channels_last", "deform_conv2d", case, value, bar, dream, False))
    value = share("ga_scope", "conv2d")
    table.append(Bar(f"{dense}, float32, contiguous", "deform_conv2d", "forward 1x100x168", value, 1.25, 1.1, False))
    case = "backward 1x100x168 by dtype, channels_last"
    what = "deform_conv2d 100x168, backward bfloat16, of float32"
    table.append(Bar(what, "deform_conv2d", case, share("bfloat16", "float32"), 0.5, 0.3, False))
    case = "100x168 at 10 %, bfloat16, channels_last"
    what = "masked_conv2d 100x168 at 10 %, bfloat16, efficiency"
    table.append(Bar(what, "masked_conv2d", case, column("ga_scope", "efficiency"), 0.5, 0.8, True, ""))
    for groups in (1, 5, 80):
        case = f"5000 boxes in {groups} groups"
        table.append(Bar(f"nms_mask, {case}", "nms_mask", case, faster("ga_scope", "torchvision"), 1, 10))
    for peer in ("torchvision RPN", "detectron2 RPN"):
        for layout in ("", ", channels_last"):
            for name, bar, dream in (("GA-RPN", 0.75, 0.6), ("GA-RPN without conv", 0.25, 0.15)):
                name += layout
                what = f"{name}: time of {peer}"
                table.append(Bar(what, "ga_head", HEAD, share(name, peer), bar, dream, False))
        table += [
            Bar(f"training step: time of {peer}", "training_step", STEP, share("GA-RPN", peer), 1.2, 1.0, False),
            Bar(
                f"training step: memory of {peer}",
                "training_step",
                STEP,
                share("GA-RPN", peer, "extra_mb"),
                1.2,
                1.0,
                False,
            ),
        ]
    for count, bar in ((30, 50), (200, 100)):
        case = f"G = {count}"
        for mode in (SAMPLED, EXACT):
            what = f"viou_match, {mode}, G = {count}"
            table.append(Bar(what, "viou_match", case, faster(mode, "matrix in torch"), bar, 10 * bar))
            table.append(Bar(f"{what}, memory", "viou_match", case, column(mode, "extra_mb"), 5, 0.5, False, "MB"))
    for mode in (SAMPLED, EXACT):
        what = f"viou_match, {mode}, G = 3000"
        table.append(Bar(what, "viou_match", "G = 3000", column(mode, "ms"), 500, 100, False, "ms"))
        table.append(Bar(f"{what}, memory", "viou_match", "G = 3000", column(mode, "extra_mb"), 20, 2, False, "MB"))
    table.append(
        Bar("viou_match: exact against sampled, G = 200", "viou_match", "G = 200", share(EXACT, SAMPLED), 1, 0.5, False)
    )
    return table


def verdicts(rows):
    """A table row per bar; 'not measured' where its rows are missing."""
    by_case = {}
    for row in rows:
        by_case.setdefault((row["benchmark"], row["case"]), {})[row["variant"]] = row
    table = []
    for bar in bars():
        try:
            value = float(bar.value(by_case[bar.benchmark, bar.case]))
        except (KeyError, TypeError):
            table.append({"what": bar.what, "verdict": "not measured"})
            continue
        dream, met = (value >= limit if bar.least else value <= limit for limit in (bar.dream, bar.bar))
        verdict = "dream" if dream else "met" if met else "MISSED"
        sign = ">=" if bar.least else "<="
        table.append(
            {
                "what": bar.what,
                "measured": f"{value:.3g} {bar.unit}".strip(),
                "bar": f"{sign} {bar.bar:g}",
                "dream": f"{sign} {bar.dream:g}",
                "verdict": verdict,
            }
        )
    return table


def report(rows):
    table = verdicts(rows)
    missed = sum(row["verdict"] == "MISSED" for row in table)
    text = harness.format_table(table, ["what", "measured", "bar", "dream", "verdict"])
    return f"{text}\n{len(table)} bars, {missed} missed"


if __name__ == "__main__":
    print(report([row for path in sys.argv[1:] for row in harness.read_csv(path)]))
