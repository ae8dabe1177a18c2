"""Boxes on an image, as one picture of the image's size."""

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..modeling.results import ImageResult

MOST_PROPOSALS = 30  # more would cover the image
PROPOSAL = (255, 176, 0)


def colour_of(label: int) -> tuple[int, int, int]:
    """Classes that follow one another are far apart in hue."""
    hue = (label * 0.618034) % 1
    return tuple(round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.85, 0.95))


def draw_detections(
    image: Image.Image, result: ImageResult, names: Sequence[str], score_thresh: float = 0.5
) -> Image.Image:
    """A copy of the image with the detections of at least ``score_thresh``; of a model without any, its best proposals.

    Line and letters grow with the image.
    """
    drawn = image.convert("RGB")
    canvas, side = ImageDraw.Draw(drawn), max(drawn.size)
    width, font = max(1, round(side / 400)), ImageFont.load_default(max(10, side / 55))
    if result.boxes is None:
        for box in result.proposals[:MOST_PROPOSALS].tolist():
            canvas.rectangle(box, outline=PROPOSAL, width=width)
        return drawn
    rows = zip(result.boxes.tolist(), result.scores.tolist(), result.classes.tolist())
    for box, score, label in reversed([row for row in rows if row[1] >= score_thresh]):  # the best on top
        colour = colour_of(label)
        canvas.rectangle(box, outline=colour, width=width)
        text = f"{names[label]} {score:.2f}"
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        height = bottom - top + 2 * width
        y = box[1] - height if box[1] >= height else box[1]
        canvas.rectangle((box[0], y, box[0] + right - left + 2 * width, y + height), fill=colour)
        bright = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 140
        canvas.text((box[0] + width - left, y + width - top), text, font=font, fill="black" if bright else "white")
    return drawn
