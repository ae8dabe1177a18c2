"""Pictures of what a model does with an image. matplotlib is imported by the modules that draw with it."""
