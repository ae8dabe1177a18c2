"""Every barrier, wait, bound and swizzle of the kernels, deleted in turn: some call of the battery must notice."""

import re
from pathlib import Path

import torch

from .battery import CALLS, OPS

ROUNDS = 4  # the grid's order is drawn anew each time
SOURCES = Path(__file__).resolve().parents[2] / "csrc/cuda"
DEFINED_IN = {"grid.h", "device_grid.h", "device_launch.h"}
SITE = r"\b(within|clamped|tile_byte|wait_for_copies<\d>)\(|\.(sync|arrive)\("


def differ(found, expected):
    return len(found) != len(expected) or any(
        a.shape != b.shape or not torch.allclose(a.double(), b.double(), rtol=1e-2, atol=1e-2)
        for a, b in zip(found, expected, strict=True)
    )


def notices(run, expected):
    """What a call does about the site that is deleted now: an error, other numbers, or nothing."""
    try:
        return "other numbers" if differ(run(), expected) else ""
    except RuntimeError as error:
        return str(error).splitlines()[0]


def test_two_runs_agree():
    """Nothing is deleted: whatever the order, the same numbers."""
    for run in CALLS:
        expected = run()
        assert all(t.isfinite().all() for t in expected if t.is_floating_point()), run.__name__
        for _ in range(2):
            assert not differ(run(), expected), run.__name__


def written_sites():
    """Lines of the kernels that have such a call, as "file:line"."""
    found = set()
    for file in sorted(SOURCES.glob("*.h")):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            code = line.split("//")[0]
            if file.name not in DEFINED_IN and re.search(SITE, code) and "GA_HOST_DEVICE" not in code:
                found.add(f"{file.name}:{number}")
    return found


def test_every_deletion_is_noticed(capsys):
    passes, expected = {}, {}
    for run in CALLS:
        OPS.simulated_record()
        expected[run] = run()
        for site in OPS.simulated_recorded().splitlines():
            passes.setdefault(site, []).append(run)
    passed = {":".join(site.split(":")[:2]) for site in passes}
    missing = sorted(written_sites() - passed)
    assert not missing, f"the battery passes these by: {missing}"
    verdicts = {}
    for site, runs in passes.items():
        OPS.simulated_delete(site)
        try:
            verdicts[site] = next(
                (
                    f"{run.__name__}: {what}"
                    for _ in range(ROUNDS)
                    for run in runs
                    if (what := notices(run, expected[run]))
                ),
                "NOT NOTICED",
            )
        finally:
            OPS.simulated_delete("")
    kinds = [site.split()[-1] for site in verdicts]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    missed = [site for site, verdict in verdicts.items() if verdict == "NOT NOTICED"]
    with capsys.disabled():
        for site in sorted(verdicts):
            print(f"{site:<58} {verdicts[site][:150]}")
        print(f"{len(verdicts)} deletions ({counts}), {len(missed)} not noticed")
    assert {"barrier", "arrival", "wait", "bound", "clamp", "swizzle"} <= set(kinds)
    assert not missed
