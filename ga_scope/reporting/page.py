"""The page: one HTML file with all that it shows, of one run or of two."""

import itertools
import math
from html import escape

from .charts import bar_chart, line_chart, nothing
from .facts import PROPOSALS, SIDES, Facts, Picture

CLASSES_SHOWN = 8  # curves of a chart
PLAIN = ("anchors_per_image",)  # metrics that are no fractions

STYLE = """
:root { --back: #fff; --text: #1b1f24; --soft: #667; --line: #d8dce2; --card: #f6f7f9; --link: #0a58ca;
  --s0: #1769d2; --s1: #d9660b; --s2: #178a4c; --s3: #b3308f; --s4: #7a5cd6; --s5: #8a6a00; --s6: #0b8a94;
  --s7: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --back: #14171c; --text: #e6e8eb; --soft: #9aa3ad; --line: #333a44;
  --card: #1d2128; --link: #78aeff; --s0: #5b9dff; --s1: #ff9a4a; --s2: #45c47f; --s3: #ea7fcf; --s4: #a994ff;
  --s5: #d9b844; --s6: #46c8d2; --s7: #a3abb8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 12px 16px 60px; background: var(--back); color: var(--text);
  font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .6rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; scroll-margin-top: 8px; }
h3 { font-size: 1rem; margin: .2rem 0 .4rem; } a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: 4px 14px; padding: 6px 0; border-bottom: 1px solid var(--line); }
nav a { padding: 4px 0; } p { margin: .4rem 0; max-width: 75ch; } .soft, .none { color: var(--soft); }
.grid2 { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px; min-width: 0; }
.flow { display: flex; flex-wrap: wrap; gap: 16px; align-items: start; } .flow .card { max-width: 100%; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } 
td.long { text-align: left; white-space: normal; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; max-width: 520px; }
svg text { fill: var(--text); font: 10.5px system-ui, sans-serif; }
svg .note { fill: var(--soft); font-size: 9px; } .grid { stroke: var(--line); } .axis { stroke: var(--soft); }
polyline { fill: none; stroke-width: 2; } .legend { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: .85rem; }
.legend i { display: inline-block; width: 14px; height: 4px; margin-right: 5px; vertical-align: middle; }
.gallery { display: flex; flex-wrap: wrap; gap: 12px; } figure { margin: 0; width: min(176px, 46%); font-size: .8rem; }
figure.two { width: min(356px, 100%); } figure img { width: 176px; max-width: 49%; border-radius: 4px; }
figure:not(.two) img { max-width: 100%; } figcaption { overflow-wrap: anywhere; } figcaption b { display: block; }
.hot { position: relative; } ul { padding-left: 1.2rem; }
""" + "".join(
    f"polyline.c{n} {{ stroke: var(--s{n}); }} rect.c{n}, circle.c{n} {{ fill: var(--s{n}); }} "
    f".legend .c{n} {{ background: var(--s{n}); }}\n"
    for n in range(8)
)


def render(runs: list[Facts]) -> str:
    """The page of one run, or of two side by side, on the same dataset."""
    sections = [
        ("summary", "Summary", _summary(runs)),
        ("training", "Training", _training(runs)),
        ("classes", "Classes", _per_class(runs)),
        ("curves", "Precision and recall", _precision(runs)),
        ("confusion", "Confusion", _confusion(runs)),
        ("recall", "Recall by size and shape", _recall(runs)),
        ("calibration", "What a score is worth", _calibration(runs)),
        ("stages", "Where guided anchors lose objects", _stages(runs)),
        *([("differences", "What one finds and the other does not", _differences(runs))] if len(runs) == 2 else []),
        ("misses", "Worst misses", _gallery(runs, "misses")),
        ("alarms", "Worst false alarms", _gallery(runs, "alarms")),
    ]
    title = " against ".join(run.name for run in runs)
    lead = "".join(f"<p><b>{tag}</b>: {escape(run.name)}</p>" for tag, run in zip(_tags(runs), runs) if len(runs) > 1)
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section><h2 id="{name}">{escape(heading)}</h2>{text}</section>' for name, heading, text in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>'
        f'<body><h1 id="top">{escape(title)}</h1>{lead}<nav>{links}</nav>{body}'
        '<p class="soft"><a href="#top">To the top</a></p></body></html>\n'
    )


def percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def _table(head: list[str], rows: list[list[str]], long_last: bool = False) -> str:
    """The cells are HTML."""
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    last = ' class="long"' if long_last else ""
    body = "".join(
        "<tr>" + "".join(f"<td{last if i else ''}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>'


def _cards(cards: list[tuple[str, str]], kind: str = "grid2") -> str:
    """Side by side: charts in columns of equal width (``grid2``), tables as wide as they are (``flow``)."""
    inside = "".join(f'<div class="card"><h3>{escape(heading)}</h3>{content}</div>' for heading, content in cards)
    return f'<div class="{kind}">{inside}</div>'


def _each(runs: list[Facts], heading: str) -> list[str]:
    return [f"{heading}: {tag}" if len(runs) > 1 else heading for tag in _tags(runs)]


def _tags(runs: list[Facts]) -> list[str]:
    """Of two runs a letter each: names are long, and tables on a phone narrow."""
    return ["A", "B"][: len(runs)] if len(runs) > 1 else [run.name for run in runs]


def _summary(runs):
    names = list(dict.fromkeys(name for run in runs for name, _ in run.summary))
    about = [[escape(name), *(escape(dict(run.summary).get(name, "–")) for run in runs)] for name in names]
    keys = [k for k in dict.fromkeys(k for run in runs for k in run.metrics) if not k.startswith("AP-")]
    rows = []
    for key in keys:
        values = [run.metrics.get(key, float("nan")) for run in runs]
        cells = [f"{v:.1f}" if key in PLAIN and math.isfinite(v) else percent(v) for v in values]
        if len(values) == 2:
            gain = values[1] - values[0]
            cells.append((f"{gain:+.1f}" if key in PLAIN else f"{100 * gain:+.1f}") if math.isfinite(gain) else "–")
        rows.append([escape(key), *cells])
    head = ["metric, in %", *_tags(runs), *(["difference"] if len(runs) == 2 else [])]
    about_table = _table(["", *_tags(runs)], about, long_last=True)
    return _cards([("Runs" if len(runs) > 1 else "Run", about_table), ("Metrics", _table(head, rows))], "flow")


def _training(runs):
    losses = list(dict.fromkeys(name for run in runs for name in run.curves.losses))
    metrics = [k for k in dict.fromkeys(k for run in runs for k in run.curves.metrics) if not k.startswith("AP-")]
    if not losses:
        return nothing("no curves: there are no TensorBoard files in the run's folder")
    cards = []
    for name in losses:
        series = [(tag, run.curves.losses.get(name, [])) for tag, run in zip(_tags(runs), runs)]
        cards.append((name, line_chart(series, "step", "loss")))
    shown = [k for k in ("AP", "AP50", "AP75", "AR@100") if k in metrics]
    for name in shown:
        series = [
            (tag, [(a, 100 * b) for a, b in run.curves.metrics.get(name, [])]) for tag, run in zip(_tags(runs), runs)
        ]
        cards.append((name, line_chart(series, "step", f"{name}, %", dots=True)))
    return _cards(cards)


def _per_class(runs):
    if not any(run.per_class for run in runs):
        return nothing("the model knows no classes")
    head, rows = ["class", "objects"], {}
    for tag, run in zip(_tags(runs), runs):
        head += [f"{m} {tag}" if len(runs) > 1 else m for m in ("AP", "AP50", "AP75")]
        for name, objects, *values in run.per_class:
            rows.setdefault(name, [escape(name), str(objects)]).extend(map(percent, values))
    whole = [row for row in rows.values() if len(row) == len(head)]
    return _table(head, sorted(whole, key=lambda row: -int(row[1])))


def _precision(runs):
    cards = []
    for run, heading in zip(runs, _each(runs, "All classes")):
        curves = [(label, values) for label, values in run.precision if label.startswith("all, ")]
        if curves:
            series = [(label, _at_recalls(values)) for label, values in curves]
            cards.append((heading, line_chart(series, "recall", "precision", (0, 1), (0, 1))))
    for run, heading in zip(runs, _each(runs, "Each class, IoU 0.50")):
        order = [name for name, *_ in sorted(run.per_class, key=lambda row: -row[1])][:CLASSES_SHOWN]
        curves = dict(run.precision)
        series = [(name, _at_recalls(curves[name])) for name in order if name in curves]
        if series:
            cards.append((heading, line_chart(series, "recall", "precision", (0, 1), (0, 1))))
    return _cards(cards) if cards else nothing("the model knows no classes")


def _at_recalls(values):
    return [(i / 100, value) for i, value in enumerate(values)]


def _confusion(runs):
    cards = []
    for run, heading in zip(runs, _each(runs, "Objects, and what was said of them")):
        if run.confusion is None:
            continue
        names = [*run.classes, "nothing"]
        rows = []
        for k, name in enumerate(names):
            total = max(int(run.confusion[k].sum()), 1)
            cells = []
            for n, count in enumerate(run.confusion[k].tolist()):
                if k == n == len(run.classes):
                    cells.append("")  # nothing, of which nothing is said
                    continue
                share = round(100 * count / total)
                cells.append(f'<span style="opacity:{0.6 + 0.4 * share / 100:.2f}">{count}</span>' if count else "·")
            rows.append([escape(name), *cells])
        said = f"of score {run.threshold:.2f} or more, where F1 is best ({percent(run.f1)} %); IoU 0.5"
        cards.append((heading, _table(["object \\ said", *names], rows) + f'<p class="soft">{said}</p>'))
    return _cards(cards, "flow") if cards else nothing("the model knows no classes")


def _bins(edges) -> list[str]:
    return [f"{a:g}+" if b == float("inf") else f"<{b:g}" for a, b in itertools.pairwise(edges)]


RATIO_NAMES = ["<¼", "¼–½", "½–⅘", "⅘–1¼", "1¼–2", "2–4", ">4"]


def _recall(runs):
    cards = []
    for part, heading, names in (
        ("side", "By size: side in pixels of the file (√area)", _bins(SIDES)),
        ("ratio", "By shape: height by width", RATIO_NAMES),
    ):
        series = []
        for tag, run in zip(_tags(runs), runs):
            for curve, values in run.recalls.get(part, {}).items():
                series.append((f"{curve}, {tag}" if len(runs) > 1 else curve, values))
        if series:
            notes = [str(count) for count in runs[0].counts[part]]
            cards.append((heading, bar_chart(names, series, "share found, IoU 0.5", notes)))
    text = f"An object is found by detections of its class of any score, or by one of the {PROPOSALS} best proposals."
    return f'<p class="soft">{text} Small numbers: how many objects there are.</p>' + _cards(cards)


def _calibration(runs):
    cards = []
    meaning = {"score": "Score", "p_cls": "p_cls: the class's probability", "p_loc": "p_loc: the box's"}
    for tag, run in zip(_tags(runs), runs):
        for name, (rows, correlation, count) in run.calibration.items():
            if not rows:
                continue
            series = [
                ("mean IoU with the best object", [(score, iou) for score, iou, _ in rows]),
                ("share that finds an object", [(score, right) for score, _, right in rows]),
                ("as sure as right", [(0, 0), (1, 1)]),
            ]
            heading = f"{meaning[name]}{f', {tag}' if len(runs) > 1 else ''}"
            said = f"Rank correlation with IoU: {correlation:.3f}, of {count} detections."
            chart = line_chart(series, name, "IoU, share", (0, 1), (0, 1), dots=True)
            cards.append((heading, chart + f'<p class="soft">{said}</p>'))
    return _cards(cards) if cards else nothing("the model makes no detections")


def _stages(runs):
    cards = []
    for run, heading in zip(runs, _each(runs, "Objects found at each stage, %")):
        if run.diagnosis is None:
            continue
        sizes = ["all", "small", "medium", "large"]
        recalls = run.diagnosis["recall"]
        rows = [[escape(stage), *(percent(recalls[stage][size]) for size in sizes)] for stage in recalls]
        active = ", ".join(f"{100 * share:.1f} %" for share in run.diagnosis["active_fraction_per_level"])
        advice = "".join(f"<li>{escape(text)}</li>" for text in run.diagnosis["suggestions"])
        said = f'<p class="soft">Active locations, finest level first: {active}</p><ul>{advice}</ul>'
        cards.append((heading, _table(["stage", *sizes], rows) + said))
    return _cards(cards, "flow") if cards else nothing("the model has no GA-RPN")


def _differences(runs):
    first, second = runs
    both = [key for key in first.found if key in second.found]
    if not both:
        return nothing("the runs know no classes, or were tested on other images")
    table = {(a, b): 0 for a in (True, False) for b in (True, False)}
    for key in both:
        table[first.found[key], second.found[key]] += 1
    rows = [
        ["A finds", str(table[True, True]), str(table[True, False])],
        ["A misses", str(table[False, True]), str(table[False, False])],
    ]
    return _table(["objects", "B finds", "B misses"], rows)


KEY = (
    "Green: objects. Orange: detections. Red: the object that is missed, or the false alarm. Beside it, where there "
    "are guided anchors, how probable it is that a location is an object's centre (black 0, white 1)."
)


def _gallery(runs, kind):
    cards = []
    for run, heading in zip(runs, _tags(runs)):
        pictures: list[Picture] = getattr(run, kind)
        inside = "".join(_figure(picture) for picture in pictures)
        content = f'<div class="gallery">{inside}</div>' if pictures else nothing("none")
        cards.append(f"<h3>{escape(heading)}</h3>{content}" if len(runs) > 1 else content)
    return f'<p class="soft">{KEY}</p>' + "".join(cards)


def _figure(picture: Picture) -> str:
    images = f'<img src="{picture.image}" alt="{escape(picture.title)}" loading="lazy">'
    if picture.locations:
        images += f' <img src="{picture.locations}" alt="location probability" loading="lazy">'
    kind = ' class="two"' if picture.locations else ""
    caption = f"<b>{escape(picture.title)}</b>{escape(picture.text)}"
    return f"<figure{kind}>{images}<figcaption>{caption}</figcaption></figure>"
