"""Guided Anchoring and ScopeNet for detectron2 and torchvision, with their own C++/CUDA operators.

``ga_scope.ops`` needs torch alone; ``ga_scope.modeling`` builds the heads from it;
``ga_scope.integrations`` puts them into detectron2 and into the built-in engine.
"""

__version__ = "0.1.0"
