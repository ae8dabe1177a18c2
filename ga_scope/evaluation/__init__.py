"""Average recall of proposals, average precision of boxes, and the number of anchors behind them."""

from .coco import CocoEvaluation, report

__all__ = ["CocoEvaluation", "report"]
