"""Metrics and results of a run, as tables and files."""

import json
import math
import os
from pathlib import Path

RESULTS_FILE = "coco_instances_results.json"  # detectron2's name
PLAIN = ("anchors_per_image",)  # not in percent


def metrics_table(metrics: dict[str, float]) -> str:
    """The metrics as lines of name and value, recalls and precisions in percent; classes side by side."""
    lines, classes = [], {name[3:]: value for name, value in metrics.items() if name.startswith("AP-")}
    for name, value in metrics.items():
        if not name.startswith("AP-"):
            lines.append(f"  {name:<18}{value:10.1f}" if name in PLAIN else f"  {name:<18}{100 * value:10.1f} %")
    if classes:
        width = max(map(len, classes))
        cells = [f"{name:<{width}} {100 * value:5.1f}" for name, value in classes.items()]
        columns = max(1, 96 // (width + 9))
        lines.append("  AP by class:")
        lines += ["    " + "   ".join(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return "\n".join(lines)


def report(metrics: dict[str, dict[str, float]], folder):
    """Prints a table per dataset and writes ``metrics.json`` (``metrics_<dataset>.json`` if there are several)."""
    for dataset, values in metrics.items():
        name = "metrics.json" if len(metrics) == 1 else f"metrics_{dataset}.json"
        path = write_json(Path(folder) / name, {k: None if math.isnan(v) else v for k, v in values.items()}, indent=2)
        print(f"{dataset}:\n{metrics_table(values)}\n  -> {path}", flush=True)


def write_detections(folder, dataset: str, detections: list[dict], alone: bool) -> Path:
    """COCO's results file, for its server and other tools; of several datasets each has its own."""
    name = RESULTS_FILE if alone else f"{dataset}_{RESULTS_FILE}"
    return write_json(Path(folder) / name, detections)


def write_json(path, content, **style) -> Path:
    return write_text(path, json.dumps(content, **style) + "\n")


def write_text(path, text: str) -> Path:
    """Whole or not at all, whenever the process dies."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(text)
    partial.replace(path)
    return path
