"""The Guided Anchoring paper's tables as rows of runs, and all tables by name."""

from .runs import Run
from .scope_tables import scope_tables
from .table import AP, AR, Row, Table

GA = "MODEL.GUIDED_ANCHORING."

# ---- proposals -----------------------------------------------------------------------------------

# What the fixed anchors of RPN regress is larger than what is left from guided ones.
AS_RPN = {"MODEL.RPN.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0), "MODEL.RPN.SMOOTH_L1_BETA": 0.0}
NO_ADAPTION = {GA + "ADAPTION.OFFSETS": "none"}

RPN = Run("rpn", "rpn")
GA_RPN = Run("ga_rpn", "ga_rpn")
# Without shapes nothing reads ratios, so that they must be the default's.
NO_SHAPES = {GA + "SHAPE.ENABLED": False, GA + "SHAPE.RATIOS": (0.5, 1.0, 2.0)}
LOCATION_ONLY = Run("ga_rpn_L", "ga_rpn", NO_SHAPES | NO_ADAPTION | AS_RPN)
SHAPE_ONLY = Run("ga_rpn_S", "ga_rpn", {GA + "LOCATION.ENABLED": False, **NO_ADAPTION})
NO_FA = Run("ga_rpn_LS", "ga_rpn", NO_ADAPTION)
CENTERS = {GA + "SHAPE.PREDICT_CENTER": True}
UNGUIDED = Run("ga_rpn_unguided", "ga_rpn", {GA + "ADAPTION.OFFSETS": "features"})


def _table_1():
    return Table(
        "Table 1: region proposals",
        AR,
        [
            Row("RPN", RPN, (47.5, 54.7, 59.4, 31.7, 55.1, 64.6)),
            Row("RPN + 9 anchors", Run("rpn_9", "rpn_9_anchors"), (46.8, 54.6, 60.3, 29.5, 54.9, 65.6)),
            Row("RPN + focal loss", Run("rpn_focal", "rpn_focal"), (50.2, 56.6, 60.9, 33.9, 58.2, 67.5)),
            Row("RPN + bounded IoU loss", Run("rpn_bounded_iou", "rpn_bounded_iou"),
                (48.3, 55.1, 59.6, 33.0, 56.0, 64.3)),
            Row("RPN + iterative", Run("rpn_iterative", "rpn_iterative"), (49.7, 56.0, 60.0, 34.7, 58.2, 64.0)),
            Row("RefineRPN", Run("rpn_refine", "rpn_refine"), (50.2, 56.3, 60.6, 33.5, 59.1, 66.9)),
            Row("GA-RPN", GA_RPN, (59.2, 65.2, 68.5, 40.9, 67.8, 79.0)),
        ],
    )  # fmt: skip


def _table_4():
    return Table(
        "Table 4: location, shape and feature adaption",
        AR,
        [
            Row("none (RPN)", RPN, (47.5, 54.7, 59.4, 31.7, 55.1, 64.6)),
            Row("L.", LOCATION_ONLY, (48.0, 54.8, 59.5, 32.3, 55.6, 64.8)),
            Row("S.", SHAPE_ONLY, (53.8, 59.9, 63.6, 36.4, 62.9, 71.7)),
            Row("L. + S.", NO_FA, (54.0, 60.1, 63.8, 36.7, 63.1, 71.5)),
            Row("L. + S. + F.A.", GA_RPN, (59.2, 65.2, 68.5, 40.9, 67.8, 79.0)),
            Row("L. + S. + unguided deformable (4.3)", UNGUIDED, (56.1, 62.4, 66.1, None, None, None)),
        ],
    )


def _table_5():
    paper = {
        0.0: (75583, 100.0, 59.2, 65.2, 68.5, 7.8),
        0.01: (22274, 29.4, 59.2, 65.2, 68.5, 8.0),
        0.05: (5251, 6.5, 59.1, 65.1, 68.2, 8.2),
        0.1: (2375, 3.2, 59.0, 64.7, 67.2, 8.2),
    }
    columns = {"anchors / image": "anchors_per_image", "active %": "active_fraction"}
    columns |= {title: AR[title] for title in ("AR100", "AR300", "AR1000")} | {"images / s": "images_per_second"}
    rows = []
    for threshold, values in paper.items():
        key = {GA + "LOCATION.THRESHOLD": threshold}
        name = f"ga_rpn_threshold_{threshold:g}"
        evaluation = Run(name, "ga_rpn", key, weights=GA_RPN, kind="eval")
        speed = Run(f"{name}_speed", "ga_rpn", key, weights=GA_RPN, kind="speed")
        rows.append(Row(f"ε_L = {threshold:g}", evaluation, values, also=speed))
    return Table("Table 5: location threshold (one trained GA-RPN)", columns, rows)


def _table_6():
    return Table(
        "Table 6: alignment (C.A.) and consistency (F.A.)",
        AR,
        [
            Row("neither", Run("ga_rpn_centers_LS", "ga_rpn", CENTERS | NO_ADAPTION),
                (51.7, 58.0, 61.6, 33.8, 60.9, 70.0)),
            Row("C.A.", NO_FA, (54.0, 60.1, 63.8, 36.7, 63.1, 71.5)),
            Row("F.A.", Run("ga_rpn_centers", "ga_rpn", CENTERS), (57.2, 63.6, 66.8, 38.3, 66.1, 77.8)),
            Row("C.A. + F.A.", GA_RPN, (59.2, 65.2, 68.5, 40.9, 67.8, 79.0)),
        ],
    )  # fmt: skip


# ---- detectors -----------------------------------------------------------------------------------


def dumps(generator: Run) -> tuple[Run, Run]:
    """The proposals of both splits."""
    return tuple(
        Run(
            f"{generator.name}_proposals_{split}", generator.config, generator.overrides, generator, None, "dump", split
        )
        for split in ("train", "test")
    )


FASTER = Run("faster_rcnn", "faster_rcnn")


def _table_2():
    return Table(
        "Table 2: detection",
        AP,
        [
            Row("Fast R-CNN", Run("fast_rcnn", "fast_rcnn", proposals=dumps(RPN)),
                (37.1, 59.6, 39.7, 20.7, 39.5, 47.1)),
            Row("GA-Fast-RCNN", Run("ga_fast_rcnn", "ga_fast_rcnn", proposals=dumps(GA_RPN)),
                (39.4, 59.4, 42.8, 21.6, 41.9, 50.4)),
            Row("Faster R-CNN", FASTER, (37.1, 59.1, 40.1, 21.3, 39.8, 46.5)),
            Row("GA-Faster-RCNN", Run("ga_faster_rcnn", "ga_faster_rcnn"), (39.8, 59.2, 43.5, 21.8, 42.6, 50.7)),
            Row("RetinaNet", Run("retinanet", "retinanet"), (35.9, 55.4, 38.8, 19.4, 38.9, 46.5)),
            Row("GA-RetinaNet", Run("ga_retinanet", "ga_retinanet"), (37.1, 56.9, 40.0, 20.1, 40.1, 48.0)),
        ],
    )  # fmt: skip


def finetune(generator: Run) -> Run:
    """Three more epochs of the trained detector on another's proposals."""
    name = f"finetune_{generator.name}"
    return Run(name, "ga_finetune", weights=FASTER, proposals=dumps(generator), schedule="3_epochs")


def _table_3():
    return Table(
        "Table 3: fine-tuning of a trained Faster R-CNN, 3 epochs",
        AP,
        [
            Row("not fine-tuned", FASTER, (37.4, 58.9, 40.3, 20.8, 41.1, 49.5)),
            Row("RPN proposals", finetune(RPN),
                (37.3, 58.6, 40.1, 20.4, 40.6, 49.8)),
            Row("GA-RPN proposals", finetune(GA_RPN),
                (39.6, 59.3, 43.0, 22.0, 42.8, 52.6)),
        ],
    )  # fmt: skip


def _table_7():
    paper = {
        ("RPN", 1000, 0.5): (36.7, 58.8, 39.3), ("RPN", 1000, 0.6): (37.2, 57.1, 40.5),
        ("RPN", 300, 0.5): (36.1, 57.6, 39.0), ("RPN", 300, 0.6): (37.0, 56.3, 39.5),
        ("GA-RPN", 1000, 0.5): (37.4, 59.9, 40.0), ("GA-RPN", 1000, 0.6): (38.9, 59.0, 42.4),
        ("GA-RPN", 300, 0.5): (37.5, 59.6, 40.4), ("GA-RPN", 300, 0.6): (39.4, 59.3, 43.2),
    }  # fmt: skip
    rows = []
    for (name, count, threshold), values in paper.items():
        generator = RPN if name == "RPN" else GA_RPN
        keys = {"MODEL.ROI_HEADS.PROPOSALS_PER_IMAGE": count, "MODEL.ROI_HEADS.IOU_THRESHOLDS": [threshold]}
        run = Run(f"fast_rcnn_{generator.name}_{count}_{threshold:g}", "ga_fast_rcnn", keys, proposals=dumps(generator))
        rows.append(Row(f"{name}, {count}, IoU {threshold:g}", run, values))
    return Table(
        "Table 7: number and IoU threshold of proposals", {key: AP[key] for key in ("AP", "AP50", "AP75")}, rows
    )


def _hyperparameters():
    def row(label, value, **keys):
        run = Run(
            "ga_rpn_" + label.replace(" ", "_"), "ga_rpn", {GA + k.replace("__", "."): v for k, v in keys.items()}
        )
        return Row(label, run, (value,))

    third = 2 ** (1 / 3)
    return Table(
        "Section 4.3: hyper-parameters",
        {"AR1000": "AR@1000"},
        [
            row("3 shapes", 68.3, SHAPE__SCALES=[third]),
            Row("9 shapes, λ2 = 0.1", GA_RPN, (68.5,)),
            row("15 shapes", 68.5, SHAPE__SCALES=[2 ** (i / 5) for i in range(5)]),
            row("exact vIoU", None, SHAPE__MODE="exact"),
            row("lambda2 0.02", 68.3, SHAPE__LOSS_WEIGHT=0.02),
            row("lambda2 0.05", 68.4, SHAPE__LOSS_WEIGHT=0.05),
            row("lambda2 0.2", 68.4, SHAPE__LOSS_WEIGHT=0.2),
            row("sigma1 0.1 sigma2 0.2", 68.1, LOCATION__CENTER_RATIO=0.1, LOCATION__IGNORE_RATIO=0.2),
            row("sigma1 0.5 sigma2 1", 68.1, LOCATION__CENTER_RATIO=0.5, LOCATION__IGNORE_RATIO=1.0),
        ],
    )


def tables() -> dict[str, Table]:
    """All of them by name: 1 to 7 and ``hyper`` of Guided Anchoring, and ScopeNet's (:func:`scope_tables`)."""
    return {
        "1": _table_1(),
        "2": _table_2(),
        "3": _table_3(),
        "4": _table_4(),
        "5": _table_5(),
        "6": _table_6(),
        "7": _table_7(),
        "hyper": _hyperparameters(),
    } | scope_tables()
