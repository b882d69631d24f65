"""The tree: imports point one way, none hides in a function, and every package says what lives in it."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
FLOORS = (  # from the ground up: a module imports from floors below its own, or from its own
    ("compression.command_line", "compression.distributed"),
    ("compression.quantization",),
    ("compression.networks",),
    ("compression.pruning", "compression.data"),
    ("compression.files",),
    ("models", "dataset"),
    ("compression.training",),
    ("compression.options",),
    ("compression.stages", "compression.pages"),
)


def modules():
    """{dotted name: path} of the library and of the scripts at the top."""
    paths = [*ROOT.glob("*.py"), *ROOT.glob("compression/**/*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }


def floor_of(name):
    """The number of a module's floor; scripts are above all."""
    for number, names in enumerate(FLOORS):
        if any(name == one or name.startswith(f"{one}.") for one in names):
            return number
    return len(FLOORS)


def imports(path):
    """(module imported, whether inside a function) of the project's own modules in a file."""
    known, tree = modules(), ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name if name in known else node.module, id(node) not in top) for name in names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in top) for alias in node.names)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down_and_none_hides(name):
    for imported, hidden in imports(modules()[name]):
        if imported not in modules() or imported == "compression":
            continue
        assert floor_of(imported) <= floor_of(name), f"{name} imports {imported}, which is above it"
        assert not hidden, f"{name} imports {imported} inside a function"


def test_there_is_no_circle():
    graph = {name: {one for one, _ in imports(path) if one in modules()} for name, path in modules().items()}
    while leaves := {name for name, needed in graph.items() if not needed & graph.keys() - {name}}:
        graph = {name: needed for name, needed in graph.items() if name not in leaves}
    assert not graph, f"these import each other: {sorted(graph)}"


def test_the_root_is_small_and_packages_introduce_themselves():
    assert len(SCRIPTS) <= 10
    for path in (ROOT / "compression").glob("**/__init__.py"):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        text = importlib.import_module(package).__doc__
        assert "import" in text and len(text.strip().splitlines()) <= 6, package


def test_a_network_family_is_one_file():
    families = [
        path
        for path in (ROOT / "compression/networks").glob("*.py")
        if path.stem != "registry" and "\nARCHITECTURES = " in path.read_text()
    ]
    named = [
        name
        for path in families
        for name in importlib.import_module(f"compression.networks.{path.stem}").ARCHITECTURES
    ]
    from models import ARCHITECTURES

    assert sorted(named) == sorted(ARCHITECTURES) and len(families) > 3
