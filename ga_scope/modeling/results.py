"""What a model says of a batch, in pixels of the network's input.

Tensors have one size for all images of a batch; what an image has fewer of is followed by zeros.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .pyramid import Pyramid

# Shapes: N images, K room for the boxes of an image, P locations of an image, A active locations of the batch, k
# anchors per location.


class Proposals(NamedTuple):
    """The proposals of every image, best first."""

    boxes: Tensor  # (N, K, 4)
    logits: Tensor  # (N, K) objectness
    count: Tensor  # (N,) int64: how many of the K are proposals

    @classmethod
    def pad(cls, boxes: list[Tensor], logits: list[Tensor]) -> "Proposals":
        """From boxes (K_n, 4) and logits (K_n,) per image."""
        count = torch.tensor([len(b) for b in boxes], device=boxes[0].device)
        pad = torch.nn.utils.rnn.pad_sequence
        return cls(pad(boxes, batch_first=True), pad(logits, batch_first=True), count)

    def unpad(self) -> list[tuple[Tensor, Tensor]]:
        """Boxes and logits per image. Waits for the device."""
        return [(b[:n], s[:n]) for b, s, n in zip(self.boxes, self.logits, self.count.tolist())]

    def best(self, most: int) -> "Proposals":
        """At most so many of every image."""
        return Proposals(self.boxes[:, :most], self.logits[:, :most], self.count.clamp(max=most))


class Detections(NamedTuple):
    """The detections of every image, best first."""

    boxes: Tensor  # (N, K, 4)
    scores: Tensor  # (N, K)
    classes: Tensor  # (N, K) int64
    origins: Tensor  # (N, K) int64: the location or the proposal of the image that each comes from
    count: Tensor  # (N,) int64: how many of the K are detections

    def unpad(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Boxes, scores, classes and origins per image. Waits for the device."""
        rows = zip(self.boxes, self.scores, self.classes, self.origins, self.count.tolist())
        return [(b[:n], s[:n], c[:n], o[:n]) for b, s, c, o, n in rows]


class AnchorMaps(NamedTuple):
    """Where the guided anchors of a batch come from, and what became of them."""

    pyramid: Pyramid
    probability: Tensor  # (N, P) of every location; 1 without a location branch
    anchors: Tensor  # (N, P * k, 4) the anchors of every location
    active: Tensor  # (A,) flat indices
    boxes: Tensor  # (A * k, 4) the anchors of active locations after box regression


class ScopeMaps(NamedTuple):
    """What a ScopeNet says at every location."""

    pyramid: Pyramid
    class_logits: Tensor  # (N, P, classes)
    localization: Tensor  # (N, P) p_loc, 1 where the head has one bin
    probabilities: Tensor  # (N, P, 4, bins)


@dataclass
class Results:
    """Losses in training; otherwise what the model makes: proposals, detections or both.

    Attributes:
        losses: by name, scalars.
        proposals, detections: None where the model has no such part.
        anchors: (N,) int64, how many anchors each image's results come from; None where there are no anchors.
        locations: of an image's pyramid, the same for all images of the batch.
        maps: what the results come from, where it was asked for and the model has it.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    proposals: Proposals | None = None
    detections: Detections | None = None
    anchors: Tensor | None = None
    locations: int = 0
    maps: AnchorMaps | ScopeMaps | None = None


def size_tensor(image_sizes, device) -> Tensor:
    """Heights and widths (N, 2) of the images, from that or from a list of pairs."""
    return torch.as_tensor(image_sizes, device=device)


# ---- one image -------------------------------------------------------------------------------------


@dataclass
class GuidedAnchors:
    """The guided anchors of one image and where they come from, in pixels of its file.

    Shapes: P locations, A anchors at active locations, k anchors per location.
    """

    probability: list[Tensor]  # per level (H_l, W_l)
    strides: list[float]  # of the levels
    centers: Tensor  # (P, 2) the points that locations stand for
    everywhere: Tensor  # (P * k, 4) the anchors of every location
    active: Tensor  # (A / k,) locations
    boxes: Tensor  # (A, 4) the anchors at active locations
    scores: Tensor  # (A,) their location probabilities
    levels: Tensor  # (A,)
    regressed: Tensor  # (A, 4) what box regression makes of them, clipped to the image


@dataclass
class Scopes:
    """What the detections of one image come from, (D,) each, in pixels of its file."""

    class_scores: Tensor  # (D,) p_cls
    localization_scores: Tensor  # (D,) p_loc, 1 for a head with one bin
    probabilities: Tensor  # (D, 4, bins)
    points: Tensor  # (D, 2) the locations that say so
    strides: Tensor  # (D,) of their levels


@dataclass
class ImageResult:
    """The results of one image, on the CPU, in pixels of its file; None for what the model does not make."""

    boxes: Tensor | None = None  # (D, 4), best first
    scores: Tensor | None = None  # (D,)
    classes: Tensor | None = None  # (D,) int64
    proposals: Tensor | None = None  # (K, 4), best first
    proposal_logits: Tensor | None = None  # (K,)
    anchors: int | None = None  # number that the results come from
    locations: int = 0
    guided: GuidedAnchors | None = None
    scopes: Scopes | None = None


def image_results(results: Results, network_sizes, file_sizes) -> list[ImageResult]:
    """The results of every image of a batch, boxes clipped to it. Waits for the device.

    Args:
        network_sizes, file_sizes: (height, width) of every image in the network, without padding, and in its file.
    """
    found = [ImageResult(locations=results.locations) for _ in network_sizes]
    factors = [torch.tensor([fw / w, fh / h]) for (h, w), (fh, fw) in zip(network_sizes, file_sizes)]
    if results.anchors is not None:
        for image, count in zip(found, results.anchors.tolist()):
            image.anchors = count
    if results.proposals is not None:
        for image, (boxes, logits), factor, size in zip(found, results.proposals.unpad(), factors, file_sizes):
            boxes, kept = _in_file(boxes.cpu(), factor, size)
            image.proposals, image.proposal_logits = boxes, logits.cpu()[kept]
    origins = []
    if results.detections is not None:
        for image, (boxes, scores, classes, places), factor, size in zip(
            found, results.detections.unpad(), factors, file_sizes
        ):
            image.boxes, kept = _in_file(boxes.cpu(), factor, size)
            image.scores, image.classes = scores.cpu()[kept], classes.cpu()[kept]
            origins.append(places.cpu()[kept])
    for n, (image, factor) in enumerate(zip(found, factors)):
        if isinstance(results.maps, AnchorMaps):
            image.guided = _guided(results.maps, n, factor, file_sizes[n])
        elif isinstance(results.maps, ScopeMaps):
            image.scopes = _scopes(results.maps, n, factor, origins[n], image.classes)
    return found


def _in_file(boxes, factor, size):
    """Boxes in pixels of the file, and which are left: clipping may leave nothing of one."""
    boxes = _clipped(boxes, factor, size)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[kept], kept


def _clipped(boxes, factor, size):
    height, width = size
    return (boxes * factor.repeat(2)).clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))


def _guided(maps: AnchorMaps, image: int, factor: Tensor, size: tuple[int, int]) -> GuidedAnchors:
    pyramid, per_location = maps.pyramid, maps.anchors.shape[1] // maps.pyramid.locations
    probability, everywhere = maps.probability[image].cpu(), maps.anchors[image].cpu() * factor.repeat(2)
    chosen = maps.active // pyramid.locations == image
    active = maps.active[chosen].cpu() % pyramid.locations
    rows = (active[:, None] * per_location + torch.arange(per_location)).flatten()
    levels = pyramid.per_level(range(len(pyramid.strides)), "cpu", torch.int64)
    return GuidedAnchors(
        probability=[level[0] for level in pyramid.split(probability[None])],
        strides=[stride * float(factor.mean()) for stride in pyramid.strides],
        centers=pyramid.centers("cpu") * factor,
        everywhere=everywhere,
        active=active,
        boxes=everywhere[rows],
        scores=probability[active].repeat_interleave(per_location),
        levels=levels[active].repeat_interleave(per_location),
        regressed=_clipped(maps.boxes[chosen.repeat_interleave(per_location)].cpu(), factor, size),
    )


def _scopes(maps: ScopeMaps, image: int, factor: Tensor, places: Tensor, classes: Tensor) -> Scopes:
    pyramid = maps.pyramid
    return Scopes(
        class_scores=maps.class_logits[image].cpu()[places, classes].sigmoid(),
        localization_scores=maps.localization[image].cpu()[places],
        probabilities=maps.probabilities[image].cpu()[places],
        points=pyramid.centers("cpu")[places] * factor,
        strides=pyramid.per_level(pyramid.strides, "cpu")[places] * factor.mean(),
    )
