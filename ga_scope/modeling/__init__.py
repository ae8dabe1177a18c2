"""Heads, anchors, targets and losses on plain tensors: torch and ga_scope.ops, no framework.

Everything takes and returns tensors and lists of tensors: features per level ``(N, C, H_l, W_l)``, boxes
per image ``(G, 4)`` as (x1, y1, x2, y2) in pixels of the network's input, image sizes as (height, width).
"""
