"""The operators' definitions in plain PyTorch: for reading, for tests, for documentation. Never called by them.

They share no code with the operators, are differentiable by autograd where that makes sense, and build
every matrix in full.
"""

import math
from fractions import Fraction

import torch
import torch.nn.functional as F


def _output_sizes(maps, kernel, stride, padding, dilation):
    axes = list(zip(padding, dilation, kernel, stride))
    return [tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, (p, d, k, s) in zip(m.shape[2:], axes)) for m in maps]


def decode_locations(locations, sizes):
    """Flat location indices as (level, image, y, x), for levels of the given (H, W)."""
    per_image = sum(h * w for h, w in sizes)
    found = []
    for index in locations.tolist():
        image, rest = divmod(index, per_image)
        level = 0
        while rest >= math.prod(sizes[level]):
            rest -= math.prod(sizes[level])
            level += 1
        found.append((level, image, *divmod(rest, sizes[level][1])))
    return found


def _bilinear(map, y, x):
    """``map`` (C, H, W) at real positions of any shape: (C, ...), 0 outside (-1, H) x (-1, W)."""
    _, height, width = map.shape
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    y, x = torch.where(inside, y, 0.0), torch.where(inside, x, 0.0)
    top, left = y.detach().floor(), x.detach().floor()
    total = 0
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = (top + dy).long(), (left + dx).long()
            on_map = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = (1 - (y - top - dy).abs()) * (1 - (x - left - dx).abs())
            pixel = map[:, row.clamp(0, height - 1), column.clamp(0, width - 1)]
            total = total + torch.where(on_map, weight * pixel, 0.0)
    return total


def deform_conv2d(
    maps, offset, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), mask=None, locations=None
):
    """Deformable convolution of a pyramid at listed locations, one location and tap at a time.

    out(p) = sum over taps k of weight(k) * mask(k) * input(p * stride - padding + k * dilation + offset(k))
    (Dai et al. 2017, Eq. 2; Zhu et al. 2019, Eq. 1). ``maps`` is a list; ``offset`` (L, 2 * G * K) and
    ``mask`` (L, G * K) hold rows; ``locations=None`` lists every location. Returns (L, C_out).
    """
    channels_out, per_group, kh, kw = weight.shape
    sizes = _output_sizes(maps, (kh, kw), stride, padding, dilation)
    if locations is None:
        locations = torch.arange(maps[0].shape[0] * sum(h * w for h, w in sizes))
    taps = kh * kw
    offset_groups = offset.shape[1] // (2 * taps)
    channels = maps[0].shape[1]
    groups = channels // per_group
    grid = torch.tensor([(i * dilation[0], j * dilation[1]) for i in range(kh) for j in range(kw)]).to(offset)
    rows = []
    for r, (level, image, y, x) in enumerate(decode_locations(locations, sizes)):
        corner = torch.tensor([y * stride[0] - padding[0], x * stride[1] - padding[1]]).to(offset)
        samples = []
        for g, part in enumerate(maps[level][image].chunk(offset_groups)):
            position = corner + grid + offset[r].view(offset_groups, taps, 2)[g]
            value = _bilinear(part, position[:, 0], position[:, 1])
            samples.append(value if mask is None else value * mask[r].view(offset_groups, taps)[g])
        column = torch.cat(samples).view(groups, per_group * taps)
        kernel = weight.view(groups, channels_out // groups, per_group * taps)
        rows.append(torch.einsum("gop,gp->go", kernel, column).flatten())
    out = torch.stack(rows) if rows else maps[0].new_zeros(0, channels_out)
    return out if bias is None else out + bias


def masked_conv2d(maps, weight, bias, locations, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """The dense convolution, then the rows at the locations: (L, C_out)."""
    dense = [F.conv2d(m, weight, bias, stride, padding, dilation, groups) for m in maps]
    rows = torch.cat([d.permute(0, 2, 3, 1).flatten(1, 2) for d in dense], 1).flatten(0, 1)
    return rows[locations]


def box_iou(a, b):
    """IoU of every box of ``a`` (A, 4) with every box of ``b`` (B, 4): (A, B). 0 for boxes without area."""
    corner = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])
    intersection = corner.clamp(min=0).prod(2)
    areas = [(c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b)]
    valid = [(c[:, 2] > c[:, 0]) & (c[:, 3] > c[:, 1]) for c in (a, b)]
    iou = intersection / (areas[0][:, None] + areas[1][None, :] - intersection)
    return torch.where(valid[0][:, None] & valid[1][None, :] & (intersection > 0), iou, 0.0)


def best_of_matrix(overlap, min_iou=0.0):
    """``overlap`` (A, G) -> iou and index per row and per column; ties to the lower index, none: 0 and -1."""

    def best(matrix):
        if matrix.shape[1] == 0:
            return matrix.new_zeros(len(matrix)), torch.full((len(matrix),), -1)
        iou = matrix.max(1).values
        index = (matrix == iou[:, None]).int().argmax(1)
        none = (iou <= 0) | (iou < min_iou)
        return iou.masked_fill(none, 0), index.masked_fill(none, -1)

    return (*best(overlap), *best(overlap.T))


def best_for_of_matrix(overlap, low_quality_from=0.0, min_iou=0.0):
    """``overlap`` (A, G) -> per row the last column whose largest value it has, if above 0 and at least both floors."""
    best_for = torch.full((len(overlap),), -1)
    for g, column in enumerate(overlap.T):
        top = column.max() if len(column) else 0
        if top > 0 and top >= low_quality_from and top >= min_iou:
            best_for[column == top] = g
    return best_for


def viou(centers, boxes, shapes):
    """Eq. 5 by enumeration: the maximum over ``shapes`` (S, 2) of the IoU of an anchor of that shape at each
    of ``centers`` (L, 2) with each box: (L, G)."""
    best, centers = centers.new_zeros(len(centers), len(boxes)), centers[:, None]
    for part in shapes.split(64):  # a thousand at once would not fit
        anchors = torch.cat([centers - part / 2, centers + part / 2], 2)
        overlap = box_iou(anchors.flatten(0, 1), boxes).unflatten(0, anchors.shape[:2])
        best = torch.maximum(best, overlap.amax(1))
    return best


def nms_mask(boxes, iou_threshold, groups, valid):
    """Which of one entry's boxes (K, 4), the best first, no surviving earlier box of their group overlaps too much."""
    overlap, kept = box_iou(boxes, boxes), []
    for i in range(len(boxes)):
        rivals = [j for j in range(i) if kept[j] and groups[i] == groups[j]]
        kept.append(bool(valid[i]) and not any(overlap[j, i].item() > iou_threshold for j in rivals))
    return torch.tensor(kept, dtype=torch.bool, device=boxes.device)


def level_centers(size, stride, cell_offset=0.5):
    """Image positions (x, y) of a level's locations in index order: (H * W, 2)."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([x, y], 2).flatten(0, 1) + cell_offset) * stride


def inside_any(points, boxes):
    """Whether each of ``points`` (P, 2) lies in any of ``boxes`` (B, 4) that has an area: (P,) bool."""
    found = [
        any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in boxes.tolist() if x1 < x2 and y1 < y2)
        for x, y in points.tolist()
    ]
    return torch.tensor(found, dtype=torch.bool)


def part_inside(anchors, boxes):
    """The part of the area of each anchor (A, 4) that lies in each box (B, 4): (A, B), 0 for boxes without area."""
    parts = torch.zeros(len(anchors), len(boxes), dtype=torch.float64)
    for a, (x1, y1, x2, y2) in enumerate(anchors.tolist()):
        for b, (left, top, right, bottom) in enumerate(boxes.tolist()):
            width, height = min(x2, right) - max(x1, left), min(y2, bottom) - max(y1, top)
            if x1 < x2 and y1 < y2 and left < right and top < bottom and width > 0 and height > 0:
                parts[a, b] = width * height / ((x2 - x1) * (y2 - y1))
    return parts


def level_of_box(box, base, levels):
    """The level l of a box (4,), floor(log2(sqrt(w h) / base) + 1/2) clamped: the last with w h / base^2 >= 4^l / 2.
    The sides are numbers of double precision, what follows is rational."""
    x1, y1, x2, y2 = box.tolist()
    ratio = Fraction(x2 - x1) * Fraction(y2 - y1) / Fraction(base) ** 2
    return max([level for level in range(1, levels) if ratio >= Fraction(4**level, 2)], default=0)


def location_targets(
    boxes,
    level_sizes,
    strides,
    center_ratio=0.2,
    ignore_ratio=0.5,
    sigma=8.0,
    cell_offset=0.5,
    rule="paper",
    ignore_boxes=None,
):
    """Section 3.4 for one image: int8 (P,), 1 centre, -1 ignore, 0 outside."""
    boxes = [box for box in boxes if box[2] > box[0] and box[3] > box[1]]
    home = [level_of_box(box, sigma * strides[0], len(strides)) for box in boxes]
    paint = {"paper": _paper_labels, "release": _release_labels}[rule]
    labels = torch.cat(
        [label.flatten() for label in paint(boxes, home, level_sizes, strides, center_ratio, ignore_ratio, cell_offset)]
    )
    if ignore_boxes is not None:
        centers = torch.cat([level_centers(size, s, cell_offset) for size, s in zip(level_sizes, strides)])
        labels[inside_any(centers, ignore_boxes) & (labels == 0)] = -1
    return labels


def _paper_labels(boxes, home, level_sizes, strides, center_ratio, ignore_ratio, cell_offset):
    """Cell by cell: which points lie in which regions."""
    boxes = [box.double().tolist() for box in boxes]

    def inside(box, ratio, cell_x, cell_y, stride):
        x1, y1, x2, y2 = box
        px, py = (cell_x + cell_offset) * stride, (cell_y + cell_offset) * stride
        cx, cy, half_w, half_h = (x1 + x2) / 2, (y1 + y2) / 2, ratio * (x2 - x1) / 2, ratio * (y2 - y1) / 2
        return cx - half_w <= px <= cx + half_w and cy - half_h <= py <= cy + half_h

    for level, (height, width) in enumerate(level_sizes):
        stride, labels = strides[level], [[0] * width for _ in range(height)]
        for i in range(height):
            for j in range(width):
                for box, at in zip(boxes, home, strict=True):
                    if abs(at - level) <= 1 and inside(box, ignore_ratio, j, i, stride) and labels[i][j] == 0:
                        labels[i][j] = -1
                    if at == level and inside(box, center_ratio, j, i, stride):
                        labels[i][j] = 1
        for box, at in zip(boxes, home, strict=True):
            # A box too small for any cell's point keeps the nearest cell, per axis.
            if at != level:
                continue
            rows = [i for i in range(height) if _between(box[1], box[3], center_ratio, i + cell_offset, stride)]
            columns = [j for j in range(width) if _between(box[0], box[2], center_ratio, j + cell_offset, stride)]
            nearest = [math.floor((low + high) / 2 / stride - cell_offset + 0.5) for low, high in (box[::2], box[1::2])]
            for i in rows or [min(max(nearest[1], 0), height - 1)]:
                for j in columns or [min(max(nearest[0], 0), width - 1)]:
                    labels[i][j] = 1
        yield torch.tensor(labels, dtype=torch.int8)


def _release_labels(boxes, home, level_sizes, strides, center_ratio, ignore_ratio, cell_offset):
    """Box by box: weights of a level start unset (-1); a box sets 0 in its ignore region, then 1 in its centre region;
    what is unset at the end is ignored where another level's box has its ignore region."""

    def borders(box, ratio, level):
        """First and last row and column of a region, both included; off the map at 0 or one past the last cell."""
        height, width = level_sizes[level]
        r = (1 - ratio) / 2
        x1, y1, x2, y2 = box / strides[level]
        found = [
            torch.round((1 - r) * low + r * high - cell_offset)
            for low, high in ((y1, y2), (y2, y1), (x1, x2), (x2, x1))
        ]
        return [int(b.clamp(0, most)) for b, most in zip(found, (height, height, width, width), strict=True)]

    for level, (height, width) in enumerate(level_sizes):
        weights, around = torch.full((height, width), -1), torch.zeros(height, width, dtype=torch.bool)
        for box, at in zip(boxes, home, strict=True):
            for ratio, weight in ((ignore_ratio, 0), (center_ratio, 1)):
                top, bottom, left, right = borders(box, ratio, level)
                if at == level:
                    weights[top : bottom + 1, left : right + 1] = weight
                elif abs(at - level) == 1 and weight == 0:
                    around[top : bottom + 1, left : right + 1] = True
        labels = torch.zeros(height, width, dtype=torch.int8)
        labels[(weights == -1) & around | (weights == 0)] = -1
        labels[weights == 1] = 1
        yield labels


def _between(low, high, ratio, cell, stride):
    return abs(cell * stride - (low + high) / 2) <= ratio * (high - low) / 2
