"""Pascal VOC, YOLO and COCO sources to the layout of this project: COCO json for every split, images beside it."""

from .importer import FORMATS, ImportOptions, import_dataset
from .report import FINDINGS, Report

__all__ = ["FINDINGS", "FORMATS", "ImportOptions", "Report", "import_dataset"]
