"""Inputs that are a little or very wrong, from a generator of random numbers."""

import copy
import json
import random

ODD = [
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**63, 10**30, -0.0, 0.5, -2.5, 1e-30, 1e308, float("nan"),
    float("inf"), float("-inf"), "", " ", "0", "1", "x", "nan", "None", "auto", "../x", "a\nb", "\0", "ä", "x" * 3000,
    [], {}, [[]], [0], [None], [1, 2, 3, 4], [1.5, -1, 0, 1e9], {"a": 1}, {"": []},
]  # fmt: skip


def value(rng: random.Random, old):
    """Something else in the place of ``old``, near it or not."""
    near = [lambda: [old], lambda: str(old), lambda: {"x": old}]
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        near += [lambda: -old, lambda: old + 1, lambda: old - 1, lambda: old * 10, lambda: old / 2, lambda: float(old)]
        near += [
            lambda: int(old) if abs(old) < 1e300 else 0,
            lambda: old * 1e6,
            lambda: rng.uniform(-2, 2) * (old or 1),
        ]
    elif isinstance(old, str):
        near += [lambda: old.upper(), lambda: old[:-1], lambda: old + " ", lambda: old * 2, lambda: list(old)]
    elif isinstance(old, (list, tuple)):
        old = list(old)
        near += [lambda: old[:-1], lambda: old + old[-1:], lambda: old[::-1], lambda: [*old, value(rng, 1)]]
        near += [lambda: old * 3, lambda: old[0] if old else 0, lambda: tuple(old), lambda: []]
        if old:
            k = rng.randrange(len(old))
            near += [lambda: [*old[:k], value(rng, old[k]), *old[k + 1 :]]] * 3
    elif isinstance(old, bool):
        near += [lambda: not old, lambda: int(old)]
    return rng.choice(near)() if rng.random() < 0.6 else copy.deepcopy(rng.choice(ODD))


def scaled(rng: random.Random, old):
    """A value of the same kind: numbers from nothing to far too much, lists of other lengths."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice([0, 1, 2, 3, old * 2, old // 2, old + 1, old * 1000, 10**9, 2**40, -1])
    if isinstance(old, float):
        return rng.choice([0.0, 0.5, 1.0, -1.0, old * 2, old / 1000, old * 1000, 1e-12, 1e12, 1e38])
    if isinstance(old, (list, tuple)) and old:
        k = rng.randrange(len(old))
        return rng.choice([
            [*old[:k], scaled(rng, old[k]), *old[k + 1 :]], [scaled(rng, item) for item in old], [*old, old[-1]],
            list(old[:-1]), list(old[::-1]), [*old, scaled(rng, old[-1])],
        ])  # fmt: skip
    return value(rng, old) if rng.random() < 0.2 else old


def tree(rng: random.Random, content):
    """A copy of nested dicts and lists with one entry replaced, left out, there twice, or under another name."""
    content = copy.deepcopy(content)
    node, depth = content, 0
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return content
        key = rng.choice(keys)
        inner = node[key]
        if isinstance(inner, (dict, list)) and inner and (depth == 0 or rng.random() < 0.85):
            node, depth = inner, depth + 1
            continue
        what = rng.random()
        if what < 0.7:
            node[key] = value(rng, inner)
        elif what < 0.85:
            del node[key]
        elif isinstance(node, list):
            node.append(copy.deepcopy(inner))
        else:
            node[rng.choice([str(key).upper(), f"{key}s", "", "id"])] = node.pop(key)
        return content


def data(rng: random.Random, content: bytes) -> bytes:
    """Bytes that are cut, flipped, inserted, left out or repeated."""
    kind = rng.randrange(7)
    a = rng.randrange(len(content) + 1)
    b = min(len(content), a + rng.choice([1, 2, 8, 100]))
    if kind == 0:
        return content[:a]
    if kind == 1:
        return content[:a] + content[b:]
    if kind == 2:
        return content[:a] + rng.randbytes(b - a) + content[b:]
    if kind == 3:
        return content[:a] + rng.randbytes(rng.choice([1, 16])) + content[a:]
    if kind == 4:
        return content[:a] + content[a:b] * rng.choice([2, 50]) + content[b:]
    if kind == 5:
        flipped = bytearray(content)
        for _ in range(rng.choice([1, 1, 4, 40])):
            if flipped:
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    return rng.choice([b"", b"\0" * len(content), content[a:], content + content, rng.randbytes(64)])


def json_text(rng: random.Random, content) -> bytes:
    """A mutated tree as a file; now and then its text is what is wrong."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        content = tree(rng, content)
    text = json.dumps(content, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.8:
        return text.encode(errors="surrogatepass")
    return rng.choice([
        lambda: data(rng, text.encode()),
        lambda: b"\xef\xbb\xbf" + text.encode(),
        lambda: text.encode("utf-16"),
        lambda: ("[" * 100_000 + "]" * 100_000).encode(),
        lambda: text.replace("1", "9" * 5000, rng.randrange(1, 4)).encode(),
        lambda: text.replace("1", "1e400", 2).encode(),
        lambda: text.replace('"', '"\\ud800', 3).encode(),
        lambda: text.replace("{", '{"id": 1, ', rng.randrange(1, 6)).encode(),
        lambda: text.replace('"bbox": [', '"bbox": [' + "[" * 20_000, 1).encode(),
        lambda: text.replace("null", "NaN").replace("0", "Infinity", 2).encode(),
    ])()  # fmt: skip
