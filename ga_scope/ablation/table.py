"""What a table is. The papers' numbers are those of COCO, ResNet-50-FPN, in percent."""

from dataclasses import dataclass

from .runs import Run

AR = {"AR100": "AR@100", "AR300": "AR@300", "AR1000": "AR@1000", "ARS": "AR_S@100", "ARM": "AR_M@100",
      "ARL": "AR_L@100"}  # fmt: skip
AP = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APS": "AP_S", "APM": "AP_M", "APL": "AP_L"}


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: as in the paper.
        run: whose metrics it shows.
        paper: the paper's numbers in the order of the table's columns, None where it has none.
        also: another run whose metrics fill columns that ``run`` does not have.
    """

    label: str
    run: Run
    paper: tuple
    also: Run | None = None

    def runs(self) -> list[Run]:
        """Those whose metrics it shows."""
        return [run for run in (self.run, self.also) if run is not None]


@dataclass(frozen=True)
class Table:
    """A table: its caption, and columns as {title: name of the metric}."""

    caption: str
    columns: dict[str, str]
    rows: list[Row]
