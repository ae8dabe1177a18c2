"""Guided Anchoring and ScopeNet for detectron2 and torchvision, with their own C++/CUDA operators.

``ga_scope.ops`` needs torch alone; ``ga_scope.modeling`` builds the heads from it; ``ga_scope.engines`` puts them into
detectron2 and into the built-in engine; :class:`Detector` runs a trained model; :func:`optimize_for_inference` makes it
faster, :mod:`ga_scope.export` a file.
"""

__version__ = "0.2.0"
__all__ = ["Detector", "__version__", "fit", "optimize_for_inference"]


def __getattr__(name):
    """The operators alone must not need what the rest does."""
    if name == "Detector":
        from .api import Detector

        return Detector
    if name == "optimize_for_inference":
        from .optimize import optimize_for_inference

        return optimize_for_inference
    if name == "fit":
        from .fitting import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
