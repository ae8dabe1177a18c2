"""Metrics of a dataset and its results, and what explains them."""

from .coco import Evaluation
from .report import metrics_table, report, write_detections, write_json, write_text

__all__ = ["Evaluation", "metrics_table", "report", "write_detections", "write_json", "write_text"]
