"""Timing, memory and tables that the benchmarks share."""

import argparse
import csv
import ctypes
import gc
import os
import platform
import re
import statistics
import time
from pathlib import Path

import torch

# GA_SCOPE_BENCHMARK_TINY: a twelfth of the image, so that every benchmark runs in a second: a test of the benchmarks.
TINY = os.environ.get("GA_SCOPE_BENCHMARK_TINY") == "1"
LEVELS = ((200, 336), (100, 168), (50, 84), (25, 42), (13, 21))  # of an 800 x 1344 image: 89,523 locations
STRIDES = (4, 8, 16, 32, 64)
IMAGE = (800, 1344)
if TINY:
    LEVELS, IMAGE = ((16, 28), (8, 14), (4, 7), (2, 4), (1, 2)), (64, 112)
CHANNELS = 64 if TINY else 256
FRACTIONS = (0.01, 0.03, 0.1, 0.3, 1.0)
FIXED = ("benchmark", "case", "variant", "ms", "low_ms", "high_ms", "extra_mb")


class Clock:
    """Wall time, or (``--cpu-time``) the process's processor time, which other processes disturb less."""

    now = staticmethod(time.perf_counter)


def seconds(function):
    start = Clock.now()
    function()
    return Clock.now() - start


def time_together(functions, budget=2.0, least=1 if TINY else 3, most=21, slow=4.0):
    """Seconds of every run of each function, run in turns so that a drift of the machine meets all alike.

    Each runs once to warm up, then ``least`` to ``most`` times, about ``budget`` seconds in all. A first
    run of more than ``slow`` seconds is the only one: warming up is a small part of it.
    """
    times, runs = {}, {}
    for name, function in functions.items():
        first = seconds(function)
        times[name] = [first] if first > slow else []
        runs[name] = 1 if first > slow else min(most, max(least, int(budget / first)))
    for _ in range(max(runs.values())):
        for name, function in functions.items():
            if len(times[name]) < runs[name]:
                times[name].append(seconds(function))
    return times


def _status_kb(key):
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def peak_extra_mb(function):
    """Peak memory of one call beyond what was there before and what it returns, in MB (1e6 bytes).

    Measured on the process: memory that earlier calls freed is given back to the system, the kernel's
    high-water mark is reset, and the call's own mark is read. So every allocation that is touched counts,
    whoever makes it. None where the system has no such mark.
    """
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_kb("VmRSS")
    except (OSError, AttributeError):
        return None
    result = function()
    peak = _status_kb("VmHWM")
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(result)}
    return max(0.0, ((peak - before) * 1024 - sum(kept.values())) / 1e6)


class Benchmark:
    """Collects rows and prints them, one table per case."""

    def __init__(self, name, budget=2.0):
        self.name = name
        self.budget = budget
        self.rows = []

    def compare(self, case, functions, *, peers=(), figures=None, memory=True):
        """Times the functions against each other and adds a row for each.

        Args:
            case: what they all do.
            functions: variant -> callable without arguments.
            peers: the variants to give ratios to.
            figures: variant -> {column: value} to add, or callable (variant, {variant: ms}) -> that.
        """
        times = time_together(functions, self.budget)
        ms = {name: 1e3 * statistics.median(runs) for name, runs in times.items()}
        rows = []
        for name, function in functions.items():
            row = {"benchmark": self.name, "case": case, "variant": name, "ms": ms[name]}
            row["low_ms"], row["high_ms"] = 1e3 * min(times[name]), 1e3 * max(times[name])
            row["extra_mb"] = peak_extra_mb(function) if memory else None
            for peer in peers:
                if peer in ms:
                    row[f"x {peer}"] = ms[peer] / ms[name]
            row |= (figures(name, ms) if callable(figures) else (figures or {}).get(name, {})) or {}
            rows.append(row)
        self.rows += rows
        print_table(rows)
        return ms

    def add(self, case, variant, **values):
        """A row that is not a timing."""
        row = dict.fromkeys(FIXED) | {"benchmark": self.name, "case": case, "variant": variant} | values
        self.rows.append(row)
        print_table([row])


def _text(value):
    if value is None or value == "":
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def format_table(rows, columns):
    """Aligned text; the first column to the left."""
    cells = [columns] + [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = []
    for line in cells:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def print_table(rows):
    columns = dict.fromkeys(column for row in rows for column in row if row[column] is not None)
    columns = [c for c in columns if c not in ("benchmark", "case")]
    print(f"\n{rows[0]['benchmark']}: {rows[0]['case']}")
    print(format_table(rows, columns), flush=True)


def write_csv(path, rows):
    columns = list(dict.fromkeys([*FIXED, *(column for row in rows for column in row)]))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def read_csv(path):
    """Rows with numbers as floats and empty cells left out."""

    def value(text):
        try:
            return float(text)
        except ValueError:
            return text

    with open(path, newline="") as file:
        return [
            {k: v if k in FIXED[:3] else value(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)
        ]


def key(row):
    return row["benchmark"], row["case"], row["variant"]


def print_comparison(rows, path):
    """These rows beside those of an earlier run."""
    earlier = {key(row): row for row in read_csv(path)}
    table = []
    for row in rows:
        before = earlier.get(key(row))
        if before is None or row.get("ms") is None or before.get("ms") is None:
            continue
        name = f"{row['benchmark']}: {row['case']}: {row['variant']}"
        table.append(
            {
                "row": name,
                "before ms": before["ms"],
                "now ms": row["ms"],
                "now / before": row["ms"] / before["ms"],
                "before mb": before.get("extra_mb"),
                "now mb": row.get("extra_mb"),
            }
        )
    print(f"\nagainst {path}: {len(table)} rows in common")
    if table:
        print(format_table(table, list(table[0])))


def describe_machine():
    """Versions and processor with its instruction sets, one line: what every figure depends on."""
    from ga_scope import __version__
    from ga_scope.ops import _library  # noqa: F401  (loads the operators)

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = found.group(1).strip() if found else model
    versions = [f"ga_scope {__version__}", f"torch {torch.__version__}"]
    for name in ("torchvision", "detectron2", "mmcv"):
        try:
            versions.append(f"{name} {__import__(name).__version__}")
        except ImportError:
            versions.append(f"{name} not installed")
    sets = f"kernels {torch.ops.ga_scope.cpu_capability()} of {' '.join(instruction_sets()) or platform.machine()}"
    return f"{model}, {sets}, {torch.get_num_threads()} threads; {', '.join(versions)}"


def instruction_sets():
    """Those that decide on a figure, of the sets that the processor has."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return []
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo.read_text(), re.M)
    flags = set(found.group(1).split()) if found else set()
    wanted = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
    return [name for name in wanted if name in flags]


def main(run, doc, name):
    """Command line of one benchmark: ``run(benchmark)`` fills it with rows."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--csv", type=Path, help="write the rows here")
    parser.add_argument("--compare", type=Path, help="rows of an earlier run, to set beside these")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds to spend on each variant (default 2)")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread and its processor time: for a machine that is not idle"
    )
    args = parser.parse_args()
    if args.cpu_time:
        Clock.now = staticmethod(time.process_time)
    if args.cpu_time or args.threads:
        torch.set_num_threads(1 if args.cpu_time else args.threads)
    torch.manual_seed(0)
    print(describe_machine())
    benchmark = Benchmark(name, args.budget)
    with torch.no_grad():  # a benchmark of gradients enables them
        run(benchmark)
    if args.csv:
        write_csv(args.csv, benchmark.rows)
    if args.compare:
        print_comparison(benchmark.rows, args.compare)


# ---- inputs -------------------------------------------------------------------------------------


def channels_last(maps):
    if isinstance(maps, torch.Tensor):
        return maps.contiguous(memory_format=torch.channels_last)
    return [channels_last(m) for m in maps]


def pyramid(images=1, channels=CHANNELS, levels=LEVELS):
    return [torch.randn(images, channels, *size) for size in levels]


def random_locations(count, fraction):
    """A random mask of ``fraction`` of the locations, exactly."""
    return torch.randperm(count)[: max(1, round(count * fraction))].sort().values


def random_boxes(count, size=IMAGE):
    """Boxes of 16 to 512 pixels a side, log-uniform, inside an image of (height, width)."""
    height, width = size
    sides = 16 * 32 ** torch.rand(count, 2)
    corner = torch.rand(count, 2) * (torch.tensor([float(width), float(height)]) - sides).clamp(min=1)
    return torch.cat([corner, corner + sides], 1).clamp(min=0)
