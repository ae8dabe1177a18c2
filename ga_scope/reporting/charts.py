"""Charts as SVG: text that a browser draws sharply at any width, with no script and nothing to download."""

import math
from html import escape

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 34
MOST_POINTS = 300  # of a line

Series = tuple[str, list[tuple[float, float]]]  # name, points


def line_chart(series: list[Series], x_label: str, y_label: str, x_range=None, y_range=None, dots: bool = False) -> str:
    """Lines, a colour for each, with a legend; values that are not finite are left out.

    Args:
        x_range, y_range: (least, most) of the axes; default: what the points need, from 0 on the vertical.
        dots: also mark the points.
    """
    series = [(name, [p for p in points if all(map(math.isfinite, p))]) for name, points in series]
    everything = [point for _, points in series for point in points]
    if not everything:
        return nothing("no values")
    x_low, x_high = x_range or _limits([x for x, _ in everything])
    y_low, y_high = y_range or _limits([0.0, *(y for _, y in everything)])
    x = lambda value: LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)  # noqa: E731
    y = lambda value: HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)  # noqa: E731
    parts = _axes(x, y, _ticks(x_low, x_high), _ticks(y_low, y_high), x_label, y_label)
    for number, (name, points) in enumerate(series):
        points = thinned(points)
        path = " ".join(f"{x(a):.1f},{y(min(max(b, y_low), y_high)):.1f}" for a, b in points)
        parts.append(f'<polyline class="c{number % 8}" points="{path}"><title>{escape(name)}</title></polyline>')
        if dots:
            for a, b in points:
                parts.append(
                    f'<circle class="c{number % 8}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3">'
                    f"<title>{escape(name)}: {_short(a)}, {_short(b)}</title></circle>"
                )
    return _figure(parts, f"{y_label} by {x_label}") + legend([name for name, _ in series])


def bar_chart(groups: list[str], series: list[tuple[str, list[float]]], y_label: str, notes: list[str]) -> str:
    """Bars of values in 0 to 1, side by side in each group; a group without any stays empty.

    Args:
        notes: under each group's name, as its number of objects.
    """
    x = lambda group: LEFT + group * (WIDTH - LEFT - RIGHT) / len(groups)  # noqa: E731
    y = lambda value: HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)  # noqa: E731
    parts = _axes(None, y, [], [0, 0.25, 0.5, 0.75, 1], "", y_label)
    room = x(1) - x(0)
    for g, (group, note) in enumerate(zip(groups, notes)):
        for number, (name, values) in enumerate(series):
            if math.isfinite(values[g]):
                width = room * 0.8 / len(series)
                left = x(g) + room * 0.1 + number * width
                said = escape(f"{name}, {group}: {values[g]:.3f}")
                parts.append(
                    f'<rect class="c{number % 8}" x="{left:.1f}" y="{y(values[g]):.1f}" width="{width:.1f}" '
                    f'height="{y(0) - y(values[g]):.1f}"><title>{said}</title></rect>'
                )
        middle = x(g) + room / 2
        parts.append(f'<text class="tick" x="{middle:.1f}" y="{y(0) + 12}" text-anchor="middle">{escape(group)}</text>')
        parts.append(f'<text class="note" x="{middle:.1f}" y="{y(0) + 24}" text-anchor="middle">{escape(note)}</text>')
    return _figure(parts, y_label) + legend([name for name, _ in series])


def legend(names: list[str]) -> str:
    items = "".join(f'<span><i class="c{n % 8}"></i>{escape(name)}</span>' for n, name in enumerate(names))
    return f'<div class="legend">{items}</div>'


def nothing(why: str) -> str:
    return f'<p class="none">{escape(why)}</p>'


def thinned(points: list) -> list:
    """At most :data:`MOST_POINTS`, each the mean of its neighbours."""
    if len(points) <= MOST_POINTS:
        return points
    size = -(-len(points) // MOST_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(a for a, _ in part) / len(part), sum(b for _, b in part) / len(part)) for part in parts]


def _limits(values):
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within the range."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10000 else f"{value:.3g}" if value != int(value) else f"{int(value)}"


def _axes(x, y, x_ticks, y_ticks, x_label, y_label) -> list[str]:
    bottom, parts = HEIGHT - BOTTOM, []
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 4}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{_short(tick)}</text>'
        )
    for tick in x_ticks:
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 13}" text-anchor="middle">{_short(tick)}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    up = (TOP + bottom) / 2
    parts.append(
        f'<text class="label" transform="rotate(-90 10 {up})" x="10" y="{up}" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _figure(parts, what) -> str:
    content = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(what)}">{content}</svg>'
