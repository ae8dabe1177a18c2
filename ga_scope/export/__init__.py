"""Trained models as files that run without this repository: ``torch.export``, AOTInductor and ONNX."""
