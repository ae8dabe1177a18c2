"""The tables of the ScopeNet paper (5.3, minival) as rows of runs, and what goes beyond it beside them."""

from .runs import Run
from .table import AP, Row, Table

SCOPE = "MODEL.SCOPENET."

# What is only another way of scoring is another evaluation of the same weights. The quality network leaves the rest of
# the model as it is (it reads a detached input), so one training serves all three.
QUALITY = Run("scopenet", "scopenet", {SCOPE + "RESCORE": "distribution"})
NO_SIGMA = Run("scopenet_no_sigma", "scopenet", {SCOPE + "BINS.UNCERTAINTY": False})
DIRECT = Run("scopenet_direct", "scopenet", {SCOPE + "BINS.NUM": 1})


def scored(run: Run, rescore: str) -> Run:
    """The evaluation of a trained run with another score."""
    overrides = run.overrides | {SCOPE + "RESCORE": rescore}
    return Run(f"{run.name}_{rescore}", run.config, overrides, weights=run, kind="eval")


PAPER = scored(QUALITY, "mean")
BINS = scored(QUALITY, "none")


def _table_1():
    return Table(
        "Table 1: from direct regression to ScopeNet",
        AP,
        [
            Row("direct regression (N = 1)", DIRECT, (35.8, 55.2, 37.5, 18.7, 40.1, 47.6)),
            Row("multiple anchors (N = 5)", BINS, (37.2, 56.0, 39.4, 19.6, 41.2, 49.6)),
            Row("multiple anchors, re-score", PAPER, (38.0, 56.1, 40.6, 20.8, 41.9, 50.1)),
        ],
    )


def _table_2():
    paper = {
        (0.75, 3): (36.9, 55.9, 38.9, 19.3, 40.8, 48.5),
        (0.75, 5): (37.0, 55.6, 39.2, 19.3, 41.2, 48.6),
        (0.75, 7): (36.9, 55.4, 39.4, 19.7, 40.6, 49.1),
        (1, 3): (37.1, 56.0, 39.4, 20.1, 41.1, 48.5),
        (1, 5): (37.2, 56.0, 39.4, 19.6, 41.2, 49.6),
        (1, 7): (37.2, 56.1, 39.4, 20.2, 40.8, 49.4),
        (1.25, 3): (37.1, 56.1, 39.5, 19.3, 40.8, 49.6),
        (1.25, 5): (37.0, 56.0, 39.3, 19.5, 41.0, 49.6),
        (1.25, 7): (36.9, 55.4, 39.4, 19.7, 40.6, 49.1),
    }
    rows = [Row("N = 1", DIRECT, (35.8, 55.2, 37.5, 18.7, 40.1, 47.6))]
    for (size, number), values in paper.items():
        keys = {SCOPE + "BINS.NUM": number, SCOPE + "BINS.SIZE": float(size), SCOPE + "RESCORE": "none"}
        run = BINS if (size, number) == (1, 5) else Run(f"scopenet_{number}_bins_{size:g}", "scopenet", keys)
        rows.append(Row(f"size {size:g}, N = {number}", run, values))
    return Table("Table 2: size and number of the anchors, no re-score", AP, rows)


def _table_3():
    return Table(
        "Table 3: the score of the box, and σ²",
        {key: AP[key] for key in ("AP", "AP50", "AP75")},
        [
            Row("no p_loc", BINS, (37.2, 56.0, 39.4)),
            Row("p_loc, no σ²", NO_SIGMA, (37.7, 55.2, 40.5)),
            Row("p_loc, σ²", PAPER, (38.0, 56.1, 40.6)),
            Row("no p_loc, no σ²", scored(NO_SIGMA, "none"), (None, None, None)),
        ],
    )


def _beyond():
    none = (None,) * len(AP)
    return Table(
        "Beyond the paper: one switch at a time, and the engine's RetinaNet on the same schedule",
        AP,
        [
            Row("the paper", PAPER, (38.0, 56.1, 40.6, 20.8, 41.9, 50.1)),
            Row("soft bins", Run("scopenet_soft", "scopenet", {SCOPE + "BINS.TARGETS": "soft"}), none),
            Row("distribution-guided quality", QUALITY, none),
            Row("GIoU loss", Run("scopenet_giou", "scopenet", {SCOPE + "LOSS.BOX": "giou"}), none),
            Row("DIoU loss", Run("scopenet_diou", "scopenet", {SCOPE + "LOSS.BOX": "diou"}), none),
            Row("RetinaNet", Run("retinanet", "retinanet"), (35.8, 55.5, 38.3, 20.1, 39.5, 47.7)),
        ],
    )


def scope_tables() -> dict[str, Table]:
    """By name: ``scope1`` to ``scope3`` and ``scope-beyond``."""
    return {"scope1": _table_1(), "scope2": _table_2(), "scope3": _table_3(), "scope-beyond": _beyond()}
