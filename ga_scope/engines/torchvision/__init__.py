"""The built-in engine on torchvision."""
