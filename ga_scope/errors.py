"""What goes wrong through no fault of the program: one line that names the key, the file or the entry."""


class InputError(ValueError):
    """Base of the errors below. Commands print it as one line, without a traceback."""


class ConfigError(InputError):
    """A configuration that cannot be honoured; the message names the key or the file."""


class DatasetError(InputError):
    """A dataset, an image or a file of proposals that cannot be used; the message names the file."""


class CheckpointError(InputError):
    """A checkpoint that cannot be used; the message names the file."""
