"""Random scenes for target assignment: the ugly cases are drawn on purpose."""

import torch


def scene(height: int, width: int, most: int = 12) -> torch.Tensor:
    """Boxes (G, 4) in double, none to ``most``, some of each kind.

    Anywhere, tiny, touching the border, larger than the last range, concentric with another, and with corners and
    centres on whole strides, so that distances fall exactly on the limits of ranges and bins.
    """
    boxes = []
    for _ in range(int(torch.randint(most + 1, ()))):
        kind = int(torch.randint(6, ()))
        x, y = torch.rand(2, dtype=torch.float64) * torch.tensor([width, height])
        w, h = 4 * 2 ** (torch.rand(2, dtype=torch.float64) * 7)
        if kind == 1:
            w, h = torch.rand(2, dtype=torch.float64) * 6 + 0.1
        elif kind == 2:
            x = torch.zeros(()) if torch.rand(()) < 0.5 else width - w
            y = torch.zeros(()) if torch.rand(()) < 0.5 else height - h
        elif kind == 3:
            x, y, w, h = torch.tensor([-200.0, -100.0, width + 600.0, height + 700.0])
        elif kind == 4 and boxes:
            x, y, x2, y2 = boxes[-1]
            w, h = x2 - x, y2 - y
            shrink = float(torch.rand(())) * 0.4
            x, y, w, h = x + shrink * w, y + shrink * h, w * (1 - 2 * shrink), h * (1 - 2 * shrink)
        elif kind == 5:
            # Centre on a cell of stride 8 and half a side of a whole power of two: limits are met exactly.
            x, y = (4 + 8 * torch.randint(n // 8, ()) for n in (width, height))
            half_w, half_h = (2.0 ** int(torch.randint(2, 9, ())) for _ in range(2))
            x, y, w, h = x - half_w, y - half_h, 2 * half_w, 2 * half_h
        boxes.append(torch.tensor([float(x), float(y), float(x + w), float(y + h)], dtype=torch.float64))
    return torch.stack(boxes) if boxes else torch.zeros(0, 4, dtype=torch.float64)
