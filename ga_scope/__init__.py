"""Guided Anchoring and ScopeNet for detectron2 and torchvision, with their own C++/CUDA operators.

``ga_scope.ops`` needs torch alone; ``ga_scope.modeling`` builds the heads from it; ``ga_scope.engines`` puts them into
detectron2 and into the built-in engine; :class:`Detector` runs a trained model.
"""

__version__ = "0.2.0"
__all__ = ["Detector", "__version__", "fit"]


def __getattr__(name):
    """The operators alone must not need what the rest does."""
    if name == "Detector":
        from .api import Detector

        return Detector
    if name == "fit":
        from .fit import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
