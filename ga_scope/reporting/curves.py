"""What was written down while a model was trained."""

from pathlib import Path
from typing import NamedTuple

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

POINTS = 1000  # of a curve: more than a page can show
NOT_LOSSES = ("lr", "time", "data_time", "eta_seconds", "rank_data_time")


class Curves(NamedTuple):
    """Steps and values, by name."""

    losses: dict[str, list[tuple[int, float]]]
    metrics: dict[str, list[tuple[int, float]]]  # of the first test set


def read_curves(folder, dataset: str) -> Curves:
    """From the TensorBoard files that either engine leaves in OUTPUT_DIR; empty where there are none."""
    folder = Path(folder)
    if not any(folder.glob("events.out.tfevents.*")):
        return Curves({}, {})
    log = EventAccumulator(str(folder), size_guidance={SCALARS: POINTS})
    log.Reload()
    losses, metrics = {}, {}
    for tag in log.Tags()["scalars"]:
        points = [(event.step + 1, event.value) for event in log.Scalars(tag)]
        if tag.startswith(f"{dataset}/"):
            metrics[tag.removeprefix(f"{dataset}/")] = points
        elif "loss" in tag and tag not in NOT_LOSSES and "/" not in tag:
            losses[tag] = points
    return Curves(losses, metrics)
