"""What Guided Anchoring and ScopeNet are worth on photos: tables of this project, not of the papers."""

from .runs import Run
from .scope_tables import BINS, DIRECT, PAPER
from .table import AP, Row, Table
from .tables import FASTER, GA_RPN, RPN

PROPOSALS = {
    "AR10": "AR@10",
    "AR100": "AR@100",
    "AR300": "AR@300",
    "AR1000": "AR@1000",
    "aspect to 2": "AR_aspect_to_2@100",
    "2 to 4": "AR_aspect_2_to_4@100",
    "over 4": "AR_aspect_over_4@100",
    "ARS": "AR_S@100",
    "ARM": "AR_M@100",
    "ARL": "AR_L@100",
    "anchors": "anchors_per_image",
    "active %": "active_fraction",
}


def _rows(columns, *runs) -> list[Row]:
    return [Row(label, run, (None,) * len(columns)) for label, run in runs]


def real_tables() -> dict[str, Table]:
    detectors = (
        ("Faster R-CNN", FASTER),
        ("GA-Faster R-CNN", Run("ga_faster_rcnn", "ga_faster_rcnn")),
        ("RetinaNet", Run("retinanet", "retinanet")),
        ("GA-RetinaNet", Run("ga_retinanet", "ga_retinanet")),
        ("ScopeNet, N = 1", DIRECT),
        ("ScopeNet, N = 5", BINS),
        ("ScopeNet, N = 5, re-scored", PAPER),
    )
    return {
        "real-proposals": Table("Proposals", PROPOSALS, _rows(PROPOSALS, ("RPN, 3 anchors", RPN), ("GA-RPN", GA_RPN))),
        "real-detectors": Table("Detectors", AP, _rows(AP, *detectors)),
    }
