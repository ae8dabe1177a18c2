"""A table's results beside the paper's: Markdown for people, JSON for programs."""

import json
import statistics

from .queue import ordered_runs
from .runs import Suite, commit, machine
from .table import Row, Table

PLAIN = ("anchors_per_image", "images_per_second")  # not in percent


def measured(suite: Suite, row: Row, seeds: list[int]) -> dict[str, list[float]]:
    """{metric: values of the seeds that are done}."""
    values = {}
    for seed in seeds:
        found = {}
        for run in reversed(row.runs()):
            found |= (suite.result(run, seed) or {"metrics": {}})["metrics"]
        for name, value in found.items():
            if isinstance(value, (int, float)):
                values.setdefault(name, []).append(value if name in PLAIN else 100 * value)
    return values


def _cell(values):
    if not values:
        return "–"
    mean = statistics.mean(values)
    digits = 0 if abs(mean) >= 1000 else 1
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def as_dict(suite: Suite, table: Table, seeds: list[int]) -> dict:
    """The table as plain data: per row the paper's numbers, every seed's, and the commands."""
    rows = []
    for row in table.rows:
        values = measured(suite, row, seeds)
        results = {seed: suite.result(row.run, seed) for seed in seeds}
        done = [seed for seed in seeds if results[seed]]
        rows.append(
            {
                "label": row.label,
                "paper": dict(zip(table.columns, row.paper)),
                "measured": {title: values.get(metric, []) for title, metric in table.columns.items()},
                "seeds": done,
                "commands": [suite.typed(run, (done or seeds)[0]) for run, _ in ordered_runs([row], seeds[:1])],
                "commits": sorted({results[seed]["commit"] for seed in done}),
                "machines": sorted({results[seed]["machine"] for seed in done}),
            }
        )
    return {"caption": table.caption, "dataset": suite.dataset, "engine": suite.engine, "rows": rows}


def as_markdown(content: dict) -> str:
    """Paper and measured side by side; percent, mean ± standard deviation over the seeds."""
    columns = list(content["rows"][0]["paper"])
    of_paper = any(value is not None for row in content["rows"] for value in row["paper"].values())
    how = f"Measured on {content['dataset']} with the {content['engine']} engine"
    if of_paper:
        how += "; the paper's numbers are COCO's, so compare the order of the rows, not the values"
    titles = ["", *columns, "seeds", *([f"paper: {columns[0]}", *columns[1:]] if of_paper else [])]
    lines = [
        f"## {content['caption']}",
        "",
        f"{how}. Percent; mean ± standard deviation over the seeds.",
        "",
        f"| {' | '.join(titles)} |",
        f"|{' --- |' * len(titles)}",
    ]
    for row in content["rows"]:
        cells = [_cell(row["measured"][c]) for c in columns]
        paper = ["–" if row["paper"][c] is None else f"{row['paper'][c]:g}" for c in columns] if of_paper else []
        seeds = " ".join(map(str, row["seeds"])) or "not run"
        lines.append("| " + " | ".join([row["label"], *cells, seeds, *paper]) + " |")
    commits = sorted({c for row in content["rows"] for c in row["commits"]})
    machines = sorted({m for row in content["rows"] for m in row["machines"]})
    lines += ["", f"Commit {', '.join(commits) or '–'}; machine: {', '.join(machines) or '–'}.", "", "```sh"]
    for row in content["rows"]:
        lines += [f"# {row['label']}", *row["commands"]]
    return "\n".join([*lines, "```", ""])


def as_json(content: dict) -> str:
    return json.dumps(content | {"written_at_commit": commit(), "written_on": machine()}, indent=2) + "\n"
