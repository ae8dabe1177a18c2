"""What a key's value may be: a predicate that can say what it expects."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real


@dataclass(frozen=True)
class Check:
    """``expected`` completes "expected ..., got ...". ``choices`` are listed for the documentation where there are."""

    expected: str
    accepts: Callable[[object], bool]
    choices: tuple = ()


def plain(value):
    """Lists for tuples, all the way down: a yaml has the one, a default perhaps the other."""
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def one_of(*values) -> Check:
    values = tuple(plain(value) for value in values)
    # True equals 1 in Python, but not in a configuration.
    accepts = lambda value: any(type(v) is type(plain(value)) and v == plain(value) for v in values)  # noqa: E731
    return Check(", ".join(map(repr, values)) if len(values) > 1 else repr(values[0]), accepts, values)


def _number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and value == value and abs(value) != float("inf")


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def number(low=None, high=None, above=None) -> Check:
    """A finite number of at least ``low``, more than ``above``, at most ``high``."""
    limits = {"of at least": low, "above": above, "of at most": high}
    said = " and ".join(f"{words} {limit:g}" for words, limit in limits.items() if limit is not None)
    expected = f"a number from {low:g} to {high:g}" if None not in (low, high) else f"a number {said}".strip()

    def accepts(value):
        return (
            _number(value)
            and (low is None or value >= low)
            and (above is None or value > above)
            and (high is None or value <= high)
        )

    return Check(expected, accepts)


def whole(low=None) -> Check:
    """An integer of at least ``low``."""
    expected = "a whole number" + (f" of at least {low}" if low is not None else "")
    return Check(expected, lambda value: _whole(value) and (low is None or value >= low))


fraction = number(0, 1)
any_value = Check("anything", lambda value: True)
switch = Check("True or False", lambda value: isinstance(value, bool))
text = Check("text", lambda value: isinstance(value, str))


def sequence(of: Check, length: int | None = None, least: int = 0) -> Check:
    """A list or tuple of values, of a length or at least so long."""
    how_many = f"{length} values" if length is not None else f"{least} or more values" if least else "a list of values"
    expected = f"{how_many}, each {of.expected}"

    def accepts(value):
        if not isinstance(value, (list, tuple)):
            return False
        right = len(value) == length if length is not None else len(value) >= least
        return right and all(of.accepts(item) for item in value)

    return Check(expected, accepts)


def ascending(of: Check, length: int | None = None, strictly: bool = False) -> Check:
    """A :func:`sequence` in ascending order."""
    base = sequence(of, length)

    def accepts(value):
        if not base.accepts(value):
            return False
        return all(a < b if strictly else a <= b for a, b in itertools.pairwise(value))

    return Check(f"{base.expected}, in ascending order", accepts)


def either(*checks: Check) -> Check:
    return Check(" or ".join(check.expected for check in checks), lambda v: any(check.accepts(v) for check in checks))
