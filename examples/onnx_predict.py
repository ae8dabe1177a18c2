#!/usr/bin/env python3
"""Detections of a picture by a model that tools/export.py wrote: onnx_predict.py model.onnx photo.jpg [score]"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def predict(session, picture, score_thresh=0.0):
    """(name, score, [x1, y1, x2, y2] in pixels of the picture) of every detection, best first."""
    model = json.loads(session.get_modelmeta().custom_metadata_map["ga_scope"])
    scale = 1.0
    if model["short_side"]:
        scale = min(model["short_side"] / min(picture.size), model["longest"] / max(picture.size))
    width, height = (max(int(side * scale + 0.5), 1) for side in picture.size)
    pixels = np.asarray(picture.resize((width, height), Image.BILINEAR), np.float32).transpose(2, 0, 1)
    pixels = pixels[::-1] if model["format"] == "BGR" else pixels
    images = np.pad(pixels, ((0, 0), (0, -height % model["stride"]), (0, -width % model["stride"])))[None]
    found = session.run(None, {"images": images, "sizes": np.array([[height, width]])})
    boxes, scores, classes = (part[0, : found[-1][0]] for part in found[:3])
    boxes = boxes * np.tile([picture.width / width, picture.height / height], 2)
    names = [model["classes"][label] for label in classes]
    return [item for item in zip(names, scores.tolist(), boxes.tolist()) if item[1] > score_thresh]


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    picture = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
    for name, score, box in predict(session, picture, float(sys.argv[3]) if len(sys.argv) > 3 else 0.5):
        print(f"{name} {score:.3f} {' '.join(f'{side:.1f}' for side in box)}")
