"""Pictures of what a model does with an image."""

from .panels import draw_panels

__all__ = ["draw_panels"]
