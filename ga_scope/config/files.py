"""Configuration files: yaml that runs no code, with the files that they build on."""

import ast
import difflib
from pathlib import Path

import yaml

from ..errors import ConfigError
from ..untrusted import check_file
from .schema import flat

BASE = "_BASE_"
# The configurations that come with the project: beside the package in a checkout, within it where it is installed.
CONFIGS = next(
    (folder for folder in (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
     if (folder / "COCO-Detection").is_dir()),
    None,
)  # fmt: skip
MOST_VALUES = 100_000


def find_config(path, beside: Path | None = None) -> Path:
    """A configuration's file: as named, or one of the project's, with or without ``.yaml``.

    ``COCO-Detection/ga_faster_rcnn_R_50_FPN_1x`` so is the same file from any folder.

    Args:
        beside: the folder that a relative name starts from; default: the current one.

    Raises:
        ConfigError: there is no such file; names those that are similar.
    """
    named = (beside or Path()) / Path(path).expanduser()
    if named.exists() or Path(path).is_absolute() or CONFIGS is None:
        return named
    inside = str(path).removeprefix("configs/")
    for name in (inside, f"{inside}.yaml"):
        if (CONFIGS / name).is_file():
            return CONFIGS / name
    known = {str(file.relative_to(CONFIGS).with_suffix("")): file for file in sorted(CONFIGS.rglob("*.yaml"))}
    by_stem = {Path(name).name: name for name in known}
    close = difflib.get_close_matches(Path(inside).stem, by_stem, n=3, cutoff=0.5)
    hint = f"; similar: {', '.join(by_stem[name] for name in close)}" if close else ""
    raise ConfigError(f"{named}: no such configuration file, here or among the project's{hint}")


def read_yaml(path, _chain: tuple[Path, ...] = (), beside: Path | None = None) -> tuple[dict, dict]:
    """What the bases of a file (``_BASE_``, one or a list) set, and what the file itself sets on top.

    Raises:
        ConfigError: the file is missing, no mapping, holds code, or builds on itself.
    """
    try:
        path = find_config(path, beside)
        if path.resolve() in _chain:
            raise ConfigError(f"{path}: builds on itself: {' -> '.join(str(p) for p in (*_chain, path.resolve()))}")
        check_file(path)
        content = yaml.safe_load(path.read_text())
        _size(content, {})
    except ConfigError:
        raise
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except Exception as error:  # yaml's own, and what its tags raise for values that they do not fit
        raise ConfigError(f"{path}: not a configuration: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: expected keys and their values, got {type(content).__name__}")
    bases, merged = content.pop(BASE, []), {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: {BASE}: expected the name of a file, got {base!r}")
        try:
            parts = read_yaml(base, (*_chain, path.resolve()), path.parent)
        except ConfigError as error:
            raise ConfigError(f"{path}: {BASE}: {error}") from None
        for part in parts:
            merged = merge(merged, part)
    return merged, content


def _size(value, known: dict[int, int | None]) -> int:
    """How many values there are, aliases written out: a few lines of yaml can stand for more than memory holds.

    Raises:
        ValueError: there are too many, or without end.
    """
    if not isinstance(value, (dict, list, set, tuple)):
        return 1
    if known.get(id(value), 0) is None:
        raise ValueError("expected values that end, got an alias within what it stands for")
    if id(value) not in known:
        known[id(value)] = None
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    if known[id(value)] > MOST_VALUES:
        raise ValueError(f"expected at most {MOST_VALUES} values, aliases written out, got more")
    return known[id(value)]


def merge(below: dict, above: dict) -> dict:
    """``above`` over ``below``, mapping by mapping."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def assign(cfg, name: str, value, source: str = "", hint: str = ""):
    """Sets a key that the configuration has to a value of the type that it has there.

    Text that reads as a Python literal is that literal ("(60000, 80000)", "1e-3"); whole numbers will do for numbers,
    lists for tuples.

    Raises:
        ConfigError: naming the key, and the ``source`` if it is a file.
    """
    source = f"{source}: " if source else ""
    *parts, last = name.split(".")
    node = cfg
    for part in parts:
        node = node.get(part) if hasattr(node, "items") else None
    if not hasattr(node, "items") or last not in node:
        raise ConfigError(f"{source}{name}: no such key{hint}")
    there, value = node[last], _decoded(value)
    if hasattr(there, "items") or hasattr(value, "items"):
        got = "keys" if hasattr(value, "items") else repr(value)
        raise ConfigError(f"{source}{name}: expected {'keys' if hasattr(there, 'items') else 'a value'}, got {got}")
    for kind, casts in ((float, (int,)), (tuple, (list,)), (list, (tuple,))):
        if type(there) is kind and type(value) in casts:
            value = kind(value)
    if type(value) is not type(there) and there is not None and value is not None:
        raise ConfigError(f"{source}{name}: expected {KINDS.get(type(there), type(there).__name__)}, got {value!r}")
    node[last] = value


KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", list: "a list", tuple: "a list"}


def _decoded(value):
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def merge_file(cfg, path, hint: str = "") -> set[str]:
    """Merges a file and its bases into a configuration; the names of the keys that the file itself sets.

    Raises:
        ConfigError: naming the file and the key that is not known or of another type.
    """
    bases, own = (flat(content) for content in read_yaml(path))
    for content in (bases, own):
        for name, value in content.items():
            assign(cfg, name, value, str(path), hint)
    return set(own)


def merge_overrides(cfg, overrides, hint: str = "") -> set[str]:
    """Merges KEY VALUE pairs; the names of the keys.

    Raises:
        ConfigError: naming the key.
    """
    overrides = list(overrides)
    if len(overrides) % 2:
        raise ConfigError(f"overrides: expected KEY VALUE pairs, got {overrides[-1]!r} without a value")
    for name, value in zip(overrides[::2], overrides[1::2]):
        assign(cfg, name, value, hint=hint)
    return set(overrides[::2])
