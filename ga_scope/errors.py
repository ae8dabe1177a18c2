"""What goes wrong through no fault of the program: one line that names the key, the file or the entry."""

MOST = 1000  # characters of a message: a value of a million entries is not a message


class InputError(ValueError):
    """Base of the errors below: a message of one line. Commands print it without a traceback.

    Attributes:
        details: what was longer, as the traceback that a loader's process hands on with the error.
    """

    def __init__(self, message: str = ""):
        self.details = str(message)
        super().__init__(_one_line(self.details))


class ConfigError(InputError):
    """A configuration that cannot be honoured; the message names the key or the file."""


class DatasetError(InputError):
    """A dataset, an image or a file of proposals that cannot be used; the message names the file."""


class CheckpointError(InputError):
    """A checkpoint that cannot be used; the message names the file."""


class TrainingError(InputError):
    """A training that cannot go on, as one whose losses are not finite; the message says what to try."""


class Interrupted(Exception):
    """A run that a signal ended.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int, text: str = ""):
        super().__init__(signal, text)
        self.signal = signal

    def __str__(self):
        return self.args[1] or "interrupted"


def _one_line(text: str) -> str:
    if text.startswith("Caught ") and "Traceback" in text:
        # torch gives an error of a loader's process the traceback there; its last line is the error itself.
        text = text.strip().splitlines()[-1].split(": ", 1)[-1]
    text = "".join(c if c.isprintable() else " " if c in "\n\t" else repr(c)[1:-1] for c in text).strip()
    return text if len(text) <= MOST else f"{text[: MOST - 200]} ... {text[-195:]}"
