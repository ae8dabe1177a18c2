"""What a key of the configuration means, for people: from the schema alone."""

import difflib

from . import SCHEMA
from .schema import Key

NOTES = (
    ("weights", "Weights mean something else under another value: it must be the one that they were trained with."),
    ("detectron2_only", "The built-in engine has no such key."),
)


def find_keys(name: str) -> list[Key]:
    """The key of that name; else those below it (``MODEL.RPN``), or whose last parts it is (``SIGMA``)."""
    if name in SCHEMA.keys:
        return [SCHEMA.keys[name]]
    below = [key for key in SCHEMA.keys.values() if key.name.startswith(f"{name}.")]
    return below or [key for key in SCHEMA.keys.values() if key.name.endswith(f".{name}")]


def similar_keys(name: str) -> list[str]:
    """Names that are written nearly so; one mistyped part does not hide the others."""
    close = difflib.get_close_matches(name, SCHEMA.keys, n=3, cutoff=0.7)
    last = {key.rpartition(".")[2]: key for key in SCHEMA.keys}
    by_last = difflib.get_close_matches(name.rpartition(".")[2], last, n=3, cutoff=0.7)
    return list(dict.fromkeys([*close, *(last[part] for part in by_last)]))[:3]


def facts(key: Key) -> list[tuple[str, str]]:
    """Names and texts: the meaning, what it may be, its default, what reads it."""
    rows = [("meaning", key.text)] if key.text else []
    rows += [("expected", key.check.expected), ("default", repr(key.default))]
    if key.builtin is not None and key.builtin.expected != key.check.expected:
        whose = f"the built-in engine, and {key.own.text} in either" if key.own is not None else "the built-in engine"
        rows.append(("here", f"{key.builtin.expected} with {whose}"))
    # "A, or B," is made to be gone on with ("only ... reads it").
    rows.append(("read by", key.when.text.replace(",,", ",").rstrip(",") if key.when is not None else "every model"))
    return rows + [("note", text) for attribute, text in NOTES if getattr(key, attribute)]
