"""The arrows between the parts of the package, from the code's own imports: never up, never in a circle."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top down: a part imports from those below it alone.
LAYERS = [
    {"tools", "train_net"},
    {"ablation", "cli"},
    {"export", "fitting"},
    {"prediction", "reporting"},
    {"api", "optimize"},
    {"engines"},
    {"visualization", "evaluation"},
    {"config", "data"},
    {"modeling"},
    {"ops", "untrusted"},
    {"errors", "collect_env"},
]
DETECTRON2_ONLY_IN = "ga_scope/engines/detectron2/"


def sources():
    return [*sorted((ROOT / "ga_scope").rglob("*.py")), *sorted((ROOT / "tools").glob("*.py")), ROOT / "train_net.py"]


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sources()}


def imports_of(path: Path, whole: bool = True) -> set[str]:
    """The modules of this repository that a file imports; of ``whole`` false, only when it is imported itself."""
    module, found = module_of(path), set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if whole else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            start = ".".join(part for part in (base, node.module) if part)
            names = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name for name in names if name in MODULES}
    return found - {module}


def layer_of(module: str) -> int:
    parts = module.split(".")
    name = parts[0] if parts[0] != "ga_scope" else parts[1] if len(parts) > 1 else "ga_scope"
    for number, layer in enumerate(LAYERS):
        if name in layer:
            return number
    return -1  # the package itself


def test_every_part_has_its_layer():
    unknown = {module for module in MODULES if layer_of(module) < 0}
    assert unknown == {"ga_scope"}


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_goes_up(module):
    if layer_of(module) < 0:
        return
    for other in imports_of(MODULES[module]):
        # ``from ga_scope import Detector`` reaches the package, whose name is below everything.
        assert other == "ga_scope" or layer_of(other) >= layer_of(module), f"{module} imports {other}"


def test_no_circle():
    graph = {module: imports_of(path, whole=False) - {"ga_scope"} for module, path in MODULES.items()}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for other in sorted(graph[module]):
            # A package's file names its own modules; they import one another, and not the package.
            if not module.startswith(other + ".") and not other.startswith(module + "."):
                visit(other)
        path.pop()
        done.add(module)

    for module in graph:
        visit(module)


def test_modules_are_not_imported_by_text():
    """Which module runs is to be read in the code; what is installed is asked for by name."""
    for path in sources():
        if path.name == "collect_env.py":
            continue
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert "import_module" not in names, path


def test_detectron2_is_imported_in_one_place():
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.split(".")[0] == "detectron2" for name in names):
                assert str(path.relative_to(ROOT)).startswith(DETECTRON2_ONLY_IN), path


def test_tools_hold_arguments_and_calls():
    """No class, no loop: what a tool does can be had from the package."""
    for path in [*(ROOT / "tools").glob("*.py"), ROOT / "train_net.py"]:
        if path.name in ("check_cuda_build.py", "cuda_toolkit.py", "cuda_budget.py", "sass.py", "gpu_small_shapes.py"):
            continue  # of the build and of a GPU's check; the package does not know them
        kinds = {type(node) for node in ast.walk(ast.parse(path.read_text()))}
        assert not kinds & {ast.ClassDef, ast.While, ast.AsyncFor}, path
        assert len(path.read_text().splitlines()) <= 80, path


def test_operators_need_torch_alone():
    for path in (ROOT / "ga_scope" / "ops").glob("*.py"):
        for other in imports_of(path):
            assert other.startswith("ga_scope.ops"), f"{path} imports {other}"


def test_csrc_needs_no_newer_headers_than_torch_2_10():
    """The package asks for torch >= 2.10, and is built with the headers of the torch that is there."""
    of_2_10 = (
        "contiguous copy_ empty get_num_threads matmul new_empty new_zeros parallel_for reshape to transpose zero_ "
        "accelerator detail"
    ).split()
    sources = [path for kind in ("h", "cpp", "cu", "inl") for path in (ROOT / "csrc").rglob(f"*.{kind}")]
    code = "\n".join(re.sub("//.*", "", path.read_text()) for path in sources)
    used = set(re.findall(r"torch::stable::([a-z]\w*)", code))
    assert used and used <= set(of_2_10), f"not in torch 2.10's headers: {sorted(used - set(of_2_10))}"
    assert "STABLE_TORCH_ERROR_CODE_CHECK" not in code  # 2.14
