"""Trained models as files that run without this repository: ``torch.export``, AOTInductor and ONNX."""

from .files import FORMATS, export, read_description

__all__ = ["FORMATS", "export", "read_description"]
