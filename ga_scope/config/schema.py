"""A key of the configuration: its default, what its value may be, and which choices read it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..errors import ConfigError
from .checks import Check, plain

BUILTIN_HINT = ": the built-in engine cannot honour it; detectron2 (--engine detectron2) can"


@dataclass(frozen=True)
class When:
    """A condition on a configuration.

    Attributes:
        text: completes "only ... reads it".
        test: of a configuration, and what a component that a user registered, of which nothing is known, makes of it.
    """

    text: str
    test: Callable[[object, bool], bool]

    def holds(self, cfg) -> bool:
        """As far as is known: a user's component may read any key."""
        return self.test(cfg, True)

    def certain(self, cfg) -> bool:
        return self.test(cfg, False)

    def __and__(self, other: "When") -> "When":
        return When(f"{self.text} with {other.text}", lambda *args: self.test(*args) and other.test(*args))

    def __or__(self, other: "When") -> "When":
        return When(f"{self.text}, or {other.text},", lambda *args: self.test(*args) or other.test(*args))


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: with its parts, as ``MODEL.RPN.NMS_THRESH``.
        default: detectron2's where it has the key.
        check: of the value.
        text: one sentence for people.
        when: the choices that read the key; None: every model and engine does.
        builtin: what the built-in engine takes, where that is less.
        own: the choices of this project's parts, which take no more than ``builtin`` in either engine.
        weights: whether weights mean something else under another value: it must be the same in evaluation as it was
            in training.
        detectron2_only: the built-in engine has no such key.
    """

    name: str
    default: object
    check: Check
    text: str = ""
    when: When | None = None
    builtin: Check | None = None
    own: When | None = None
    weights: bool = False
    detectron2_only: bool = False


def get(cfg, name: str):
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def put(cfg, name: str, value):
    """Sets a key; nodes on the way are made where they are missing."""
    *parts, last = name.split(".")
    for part in parts:
        if part not in cfg:
            cfg[part] = type(cfg)()
        cfg = cfg[part]
    cfg[last] = value


def flat(node, prefix: str = "") -> dict:
    """{name: value} of nested mappings."""
    found = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if hasattr(value, "items") else {f"{prefix}{key}": value}
    return found


class Schema:
    """All keys, and the rules that take more than one of them."""

    def __init__(self, keys: Iterable[Key], rules: Iterable[Callable]):
        self.keys = {key.name: key for key in keys}
        self.rules = tuple(rules)

    def add_defaults(self, cfg, builtin: bool):
        """The keys that ``cfg`` does not have yet, in place."""
        known = flat(cfg)
        for key in self.keys.values():
            if key.name not in known and not (builtin and key.detectron2_only):
                put(cfg, key.name, key.default)
        return cfg

    def is_read(self, cfg, name: str) -> bool:
        key = self.keys.get(name)
        return key is None or key.when is None or key.when.holds(cfg)

    def settle(self, cfg, own: set[str]):
        """Takes back what bases set for parts that this model does not have, in place.

        A base serves several systems, so that is no mistake; it is one in the file itself or on the command line.

        Args:
            own: the keys that these two set.

        Raises:
            ConfigError: a key of ``own`` that nothing reads, at another value than its default.
        """
        for key in self.keys.values():
            if key.name not in flat(cfg) or self.is_read(cfg, key.name):
                continue
            value = get(cfg, key.name)
            if plain(value) == plain(key.default):
                continue
            if key.name in own:
                raise ConfigError(
                    f"{key.name}: expected {key.default!r}, its default, got {value!r}: only {key.when.text} reads it"
                )
            put(cfg, key.name, key.default)

    def check(self, cfg, builtin: bool):
        """Raises ConfigError for a value that is impossible, or that the engine cannot honour."""
        known = flat(cfg)
        for key in self.keys.values():
            if key.name not in known or not self.is_read(cfg, key.name):
                continue
            value = known[key.name]
            if not key.check.accepts(value):
                raise ConfigError(f"{key.name}: expected {key.check.expected}, got {value!r}")
            if key.builtin is None or key.builtin.accepts(value):
                continue
            if key.own is not None and key.own.certain(cfg):
                raise ConfigError(f"{key.name}: expected {key.builtin.expected} with {key.own.text}, got {value!r}")
            if builtin:
                raise ConfigError(f"{key.name}: expected {key.builtin.expected}, got {value!r}{BUILTIN_HINT}")
        for rule in self.rules:
            rule(cfg, builtin)
