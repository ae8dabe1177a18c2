"""Reads machine code: what a cubin's kernels execute, counted along their longest path. Used by tools/cuda_budget.py.

nvdisasm and cuobjdump come from the CUDA toolkit, PATH, or the packages nvidia-cuda-nvdisasm and
nvidia-cuda-cuobjdump. Nothing here needs a GPU.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cuda_toolkit import find_cuda_toolkit

INSTRUCTION_BYTES = 16  # of every architecture since Volta
ENDS = {"EXIT", "RET", "BPT", "KILL"}


def find_program(name):
    """The path of nvdisasm or cuobjdump, or an exit that says how to get it."""
    toolkit = find_cuda_toolkit()
    places = [toolkit / "bin" / name] if toolkit else []
    places += [Path(found) for found in [shutil.which(name)] if found]
    places += [at for folder in sys.path for at in sorted(Path(folder or ".").glob(f"nvidia/*/bin/{name}"))]
    for place in places:
        if os.access(place, os.X_OK):
            return place
    sys.exit(f"no {name}: install the package nvidia-cuda-{name}, or a CUDA toolkit that has it")


def run(*command, **kwargs):
    """A command's output; an error of its own if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


@dataclass(frozen=True)
class Instruction:
    opcode: str  # with its modifiers: STG.E.128
    operands: str
    predicate: str  # "" or as "@!P0"

    @property
    def name(self):
        return self.opcode.split(".")[0]

    @property
    def bytes(self):
        """What a load or store moves per lane."""
        for part in self.opcode.split(".")[1:]:
            if re.fullmatch(r"(U|S)?8|(U|S)?16|32|64|128", part):
                return int(part.lstrip("US")) // 8
        return 4


@dataclass
class Executed:
    """Instructions executed along a path, by opcode."""

    opcodes: Counter = field(default_factory=Counter)

    @cached_property
    def length(self):
        return sum(self.opcodes.values())

    def plus(self, other):
        return Executed(self.opcodes + other.opcodes)

    def times(self, count):
        return Executed(Counter({opcode: count * n for opcode, n in self.opcodes.items()}))

    def count(self, pattern):
        """How many of the instructions match a regular expression."""
        return sum(count for opcode, count in self.opcodes.items() if re.match(pattern, opcode))

    def bytes(self, pattern):
        """What the instructions that match move per lane."""
        return sum(
            count * Instruction(opcode, "", "").bytes
            for opcode, count in self.opcodes.items()
            if re.match(pattern, opcode)
        )


@dataclass
class Loop:
    header: int
    depth: int  # 1: outermost
    blocks: frozenset
    opcodes: Counter  # of all its blocks

    def has(self, pattern):
        return any(re.match(pattern, opcode) for opcode in self.opcodes)


class ControlFlow:
    """A kernel's basic blocks, and the longest path through them.

    The longest path is what a warp executes where no branch diverges and every test comes out the long way. `units`
    matches the instructions that say how much work was done (the stores of a gather, say): a path executes as many of
    them as asked for. Loops without one are taken once. A loop with some is taken as often as `trips` says for its
    depth, outermost first, beyond them as few times as give the units; where a loop follows one that does more at a
    time, it is that one's remainder, and not taken.

    Calls are not followed: those of a 64-bit division's slow path are the only ones. Nor is BRA.DIV, which is taken
    where a warp has come apart before a shuffle.
    """

    def __init__(self, instructions):
        self.blocks, self.next = _basic_blocks(instructions)
        self.loops = []
        self._find_loops(self._reachable(), 0)

    def paths(self, units=None, count=0, trips=()):
        """Units, up to `count` -> the longest path from the kernel's first instruction to its end that does them."""
        blocks = self._reachable()
        ends = {b for b in blocks if not self.next[b]}
        return self._longest(blocks, 0, ends, set(), 1, _Work(units, count, trips))

    def turns(self, loop, units=None, count=0):
        """The same of one turn of a loop."""
        return self._turns(loop, _Work(units, count, (1,) * loop.depth))

    def _reachable(self):
        seen, left = set(), [0]
        while left:
            block = left.pop()
            if block not in seen:
                seen.add(block)
                left += self.next[block]
        return seen

    def _find_loops(self, blocks, entry, depth=1, cut=frozenset()):
        for component in self._components(blocks, cut):
            entered = {n for b in blocks - component for n in self.next[b] if n in component and n not in cut}
            header = entry if entry in component else min(entered)
            opcodes = Counter(i.opcode for block in component for i in self.blocks[block])
            self.loops.append(Loop(header, depth, frozenset(component), opcodes))
            self._find_loops(component, header, depth + 1, cut | {header})

    def _components(self, blocks, cut):
        """The cycles among the blocks, without the edges into `cut`: Tarjan's strongly connected components."""
        index, low, stack, found = {}, {}, [], []

        def followers(block):
            return [n for n in self.next[block] if n in blocks and n not in cut]

        def visit(block):
            index[block] = low[block] = len(index)
            stack.append(block)
            for follower in followers(block):
                if follower not in index:
                    visit(follower)
                    low[block] = min(low[block], low[follower])
                elif follower in stack:
                    low[block] = min(low[block], index[follower])
            if low[block] == index[block]:
                component = set()
                while block not in component:
                    component.add(stack.pop())
                if len(component) > 1 or block in followers(block):
                    found.append(component)

        for block in sorted(blocks):
            if block not in index:
                visit(block)
        return found

    def _turns(self, loop, work):
        """Units -> the longest path from the loop's header back to it that does them."""
        latches = {b for b in loop.blocks if loop.header in self.next[b]}
        cut = {other.header for other in self.loops if other.blocks >= loop.blocks}
        return self._longest(loop.blocks, loop.header, latches, cut, loop.depth + 1, work)

    def _whole(self, turns, depth, work):
        """Units -> a loop's whole path, of what its turns can do."""
        if depth <= len(work.trips):
            return {n * work.trips[depth - 1]: turn.times(work.trips[depth - 1]) for n, turn in turns.items() if n}
        options = {}
        for count in range(1, work.count + 1):
            for trips in range(1, count + 1):
                if count % trips == 0 and count // trips in turns:
                    options[count] = turns[count // trips].times(trips)
                    break
        return options

    def _longest(self, blocks, entry, ends, cut, depth, work):
        """Units -> the longest path from entry to one of the ends that does them, loops of this depth folded."""
        inner = [loop for loop in self.loops if loop.depth == depth and loop.blocks <= frozenset(blocks)]
        turns = {loop.header: self._turns(loop, work) for loop in inner}
        most = max((n for options in turns.values() for n in options), default=0)
        options = {}  # of a block, or of a loop by its header: units -> what is executed
        for loop in inner:
            own = turns[loop.header]
            if most == 0 or not work.units or not loop.has(work.units):
                options[loop.header] = {0: own.get(0, Executed())}
            else:
                whole = self._whole(own, depth, work) if max(own, default=0) == most else {}
                options[loop.header] = {0: Executed(), **{n: p for n, p in whole.items() if n <= work.count}}
        of_block = {block: loop.header for loop in inner for block in loop.blocks}
        following, last = {}, set()
        for block in blocks:
            name = of_block.get(block, block)
            if name not in options:
                done = Executed(Counter(i.opcode for i in self.blocks[block]))
                options[name] = {done.count(work.units) if work.units else 0: done}
            followers = {of_block.get(n, n) for n in self.next[block] if n in blocks and n not in cut}
            following.setdefault(name, set()).update(followers - {name})
            if block in ends:
                last.add(name)
        best = {}
        for at in _followers_first(of_block.get(entry, entry), following):
            tails = {0: Executed()} if at in last else {}
            for follower in following[at]:
                for n, tail in best[follower].items():
                    if n not in tails or tail.length > tails[n].length:
                        tails[n] = tail
            best[at] = {}
            for n, own in options[at].items():
                for m, tail in tails.items():
                    if n + m <= work.count and (
                        n + m not in best[at] or own.length + tail.length > best[at][n + m].length
                    ):
                        best[at][n + m] = own.plus(tail)
        return best[of_block.get(entry, entry)]


@dataclass(frozen=True)
class _Work:
    units: str | None
    count: int
    trips: tuple


def _followers_first(entry, following):
    order, seen, work = [], set(), [(entry, False)]
    while work:
        at, done = work.pop()
        if done:
            order.append(at)
        elif at not in seen:
            seen.add(at)
            work.append((at, True))
            work += [(n, False) for n in following[at]]
    return order


def _basic_blocks(instructions):
    """Blocks of instructions, and which follow each."""
    target_of = {}  # of BSSY, by barrier: where its BSYNC goes
    branches = {}  # instruction -> (targets, falls through)
    for i, at in enumerate(instructions):
        name = at.name
        if name == "BSSY":
            barrier, target = at.operands.split(",")[:2]
            target_of[barrier] = int(target, 16) // INSTRUCTION_BYTES
        elif name in ("BRA", "JMP") or (name == "CALL" and at.operands.startswith("0x")):
            where = int(at.operands.split(",")[-1], 16) // INSTRUCTION_BYTES
            conditional = bool(at.predicate) or "," in at.operands
            if at.opcode.startswith("BRA.DIV"):
                branches[i] = ([], True)
            else:
                branches[i] = ([where], conditional)
        elif name == "BSYNC":
            branches[i] = ([target_of[at.operands]], bool(at.predicate))
        elif name in ENDS:
            branches[i] = ([], bool(at.predicate))
        elif name == "BRX":
            raise NotImplementedError("an indirect branch: tools/sass.py cannot follow it")
    starts = {0, *(t for targets, _ in branches.values() for t in targets), *(i + 1 for i in branches)}
    starts = sorted(s for s in starts if s < len(instructions))
    blocks, following = {}, {}
    for begin, end in zip(starts, [*starts[1:], len(instructions)]):
        blocks[begin] = instructions[begin:end]
        targets, falls = branches.get(end - 1, ([], True))
        following[begin] = [*targets, *([end] if falls and end < len(instructions) else [])]
    return blocks, following


def disassemble(cubin):
    """A cubin's kernels: mangled name -> instructions."""
    text = run(find_program("nvdisasm"), "-json", cubin)
    kernels = {}
    for function in json.loads(text)[1]:
        kernels[function["function-name"]] = [
            Instruction(i["opcode"], i.get("operands", ""), i.get("predicate", ""))
            for i in function["sass-instructions"]
        ]
    return kernels


def resources(cubin):
    """Mangled name -> (registers of a thread, bytes of stack, bytes of static shared memory)."""
    text = run(find_program("cuobjdump"), "-res-usage", cubin)
    pattern = r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)"
    return {name: tuple(map(int, numbers)) for name, *numbers in re.findall(pattern, text)}


def demangle(names):
    """Mangled name -> as written."""
    names = list(names)
    return dict(zip(names, run("c++filt", input="\n".join(names)).splitlines(), strict=True))


def extract_cubins(library, folder, wanted):
    """The cubins of a shared library whose text has `wanted` in a kernel's name: architecture -> list of files."""
    program = find_program("cuobjdump")
    found = {}
    library = Path(library).resolve()
    run(program, "-xelf", "all", library, cwd=folder)
    for cubin in sorted(Path(folder).glob("*.cubin")):
        arch = re.search(r"sm_(\w+)\.cubin", cubin.name)
        if arch and wanted.encode() in cubin.read_bytes():
            found.setdefault(arch.group(1), []).append(cubin)
    return found
