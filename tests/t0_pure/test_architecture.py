"""The shape of the package, read from its syntax tree: who imports whom, and how long things are.

Modules are named without the leading `fusestore.`; a package's `__init__` has the package's name, and the
top one is `fusestore`. An import counts wherever it stands, in a function or for type checking too: it is a
dependency. Only the search for cycles leaves out what is imported for type checking.
"""

import ast
import graphlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "fusestore"

# What each module may import of this package, directly. A key or value may be a pattern; an exact key wins
# over a pattern. Packages' `__init__` need no row: they may import whatever is below them.
EVERYWHERE = {"errors", "digest"}
UNION = {"driver.union", "driver.union.*"}
ALLOWED = {
    "errors": set(),
    "digest": set(),
    "syscalls": set(),
    "files": set(),
    "reference": set(),
    "architecture": set(),
    "storage_conf": set(),
    "podman": {"storage_conf"},
    "config": {"podman", "storage_conf"},
    "tar": set(),
    "tar_writer": set(),
    "compression": set(),
    "tar_stream": {"compression"},
    "driver.api": {"tar", "driver.layout", "driver.union.tree"},  # for their types only
    "driver.whiteout": set(),
    "driver.ownership": set(),
    "driver.confine": {"files", "driver.ownership", "driver.whiteout"},
    "driver.layout": {"files", "driver.idmap", "driver.ownership", "driver.whiteout"},
    "driver.stack": {
        "driver.idmap",
        "driver.layout",
        "driver.ownership",
        "driver.union.layerdir",
        "driver.union.merged",
        "driver.whiteout",
    },
    "driver.flush": {"files"},
    "driver.counter": {"files"},
    "driver.getter": {"driver.api", "driver.confine", "driver.ownership"},
    "driver.merge": {"files", "syscalls", "driver.ownership", "driver.whiteout"},
    "driver.home": {
        "files",
        "syscalls",
        "driver.api",
        "driver.counter",
        "driver.diff",
        "driver.getter",
        "driver.layout",
        "driver.ownership",
        "driver.stack",
        "driver.union.tree",
        "driver.whiteout",
    },
    "driver.apply": {
        "syscalls",
        "files",
        "tar",
        "driver.api",
        "driver.whiteout",
        "driver.ownership",
        "driver.confine",
    },
    "driver.below": {"driver.apply", "driver.layout", "driver.ownership", "driver.stack", "driver.whiteout"}
    | UNION,
    "driver.diff": {"tar_writer", "driver.api", "driver.whiteout"} | UNION,
    "driver.union.layerdir": {"driver.idmap", "driver.ownership", "driver.whiteout"},
    "driver.union.resolve": {"driver.union.layerdir"},
    "driver.union.nodes": {"driver.union.layerdir", "driver.union.copyup"},  # the latter for its type only
    "driver.union.tree": {"driver.union.layerdir", "driver.union.nodes", "driver.union.resolve"},
    "driver.union.upper": {"syscalls", "driver.whiteout", "driver.ownership", "driver.union.layerdir"},
    "driver.union.copyup": {
        "syscalls",
        "driver.ownership",
        "driver.union.layerdir",
        "driver.union.nodes",
        "driver.union.upper",
    },
    "driver.union.merged": {"driver.whiteout"} | UNION,
    "driver.union.raising": UNION,
    "driver.union.files": {"syscalls", "driver.acl", "driver.ownership"} | UNION,
    "driver.union.writable": {"syscalls", "driver.acl", "driver.ownership", "driver.whiteout"} | UNION,
    "driver.acl": set(),
    "driver.idmap": set(),
    "driver.operations": {
        "syscalls",
        "driver.idmap",
        "driver.layout",
        "driver.loop",
        "driver.union.tree",
        "driver.union.nodes",
    },
    "driver.writable_operations": {
        "driver.acl",
        "driver.layout",
        "driver.loop",
        "driver.operations",
        "driver.union.files",
        "driver.union.writable",
    },
    "driver.raw_requests": {"driver.loop", "driver.union.writable"},
    "driver.loop": set(),
    "driver.server": {
        "syscalls",
        "files",
        "driver.layout",
        "driver.operations",
        "driver.writable_operations",
        "driver.raw_requests",
        "driver.loop",
        "driver.mounter",
        "driver.stack",
        "driver.whiteout",
    }
    | UNION,
    "driver.program": {
        "fusestore",  # its version
        "syscalls",
        "driver.acl",
        "driver.layout",
        "driver.mounter",
        "driver.ownership",
        "driver.server",
        "driver.whiteout",
    },
    "driver.preflight": {"syscalls"},
    "driver.mounter": {"syscalls", "files", "driver.layout", "driver.preflight"},
    "driver.fuse": {
        "files",
        "syscalls",
        "tar",
        "tar_stream",
        "driver.api",
        "driver.apply",
        "driver.below",
        "driver.flush",
        "driver.home",
        "driver.layout",
        "driver.merge",
        "driver.mounter",
        "driver.ownership",
        "driver.stack",
    }
    | UNION,
    "driver.vfs": {
        "files",
        "syscalls",
        "tar",
        "driver.api",
        "driver.apply",
        "driver.below",
        "driver.home",
        "driver.layout",
        "driver.merge",
        "driver.ownership",
        "driver.union.layerdir",
        "driver.union.tree",
    },
    "store.schema": set(),
    "store.upkeep.report": set(),
    "store.bigdata": {"files", "store.database"},  # the latter for its type only
    "store.database": {"files", "store.bigdata", "store.schema"},
    "store.metadata": {"driver.api", "store.database"},
    "store.tarsplit": {"driver.api"},
    "store.items": {"store.bigdata", "store.database"},
    "store.layer": {"files", "tar_stream", "tar_writer", "driver.api", "store.metadata", "store.tarsplit"},
    "store.registered": {"driver.api", "store.layer", "store.metadata", "store.tarsplit"},
    "store.layerstore": {"driver.api", "store.metadata", "store.layer", "store.registered"},
    "store.layeritems": {
        "compression",
        "tar_stream",
        "driver.api",
        "store.bigdata",
        "store.database",
        "store.items",
        "store.layer",
        "store.layerstore",
        "store.metadata",
        "store.tarsplit",
    },
    "store.images": {"store.bigdata", "store.items"},
    "store.containers": {"files", "store.bigdata", "store.database", "store.items"},
    "store.graphroot_records": {"store.bigdata", "store.items"},
    "store.graphroot_owners": {"driver.idmap", "store.graphroot_records"},
    "store.additional": {
        "files",
        "driver.api",
        "driver.getter",
        "driver.idmap",
        "driver.layout",
        "driver.ownership",
        "driver.stack",
        "driver.whiteout",
        "store.bigdata",
        "store.database",
        "store.images",
        "store.items",
        "store.layeritems",
        "store.metadata",
        "store.tarsplit",
    },
    "store.graphroot": {
        "files",
        "syscalls",
        "driver.api",
        "driver.getter",
        "driver.layout",
        "driver.whiteout",
        "store.additional",
        "store.bigdata",
        "store.graphroot_owners",
        "store.graphroot_records",
        "store.items",
    },
    "store.catalog": {
        "reference",
        "driver.fuse",
        "driver.vfs",
        "store.additional",
        "store.bigdata",
        "store.containers",
        "store.database",
        "store.images",
        "store.items",
        "store.layeritems",
        "store.layerstore",
        "store.metadata",
    },
    "store.imagemounts": {
        "config",
        "driver.api",
        "driver.below",
        "driver.layout",
        "driver.mounter",
        "driver.union.tree",
        "store.catalog",
        "store.items",
    },
    "store.upkeep.layertree": {
        "files",
        "tar",
        "tar_stream",
        "driver.api",
        "driver.apply",
        "driver.below",
        "driver.stack",
        "driver.union.layerdir",
        "store.catalog",
        "store.layer",
        "store.metadata",
    },
    "store.contents": {
        "config",
        "tar_stream",
        "driver.api",
        "driver.below",
        "driver.diff",
        "driver.stack",
        "driver.union.merged",
        "driver.union.tree",
        "store.imagemounts",
        "store.items",
        "store.layer",
        "store.metadata",
        "store.tarsplit",
    },
    "store.storage": {
        "fusestore",  # its version
        "config",
        "files",
        "driver.api",
        "driver.fuse",
        "driver.home",
        "driver.mounter",
        "driver.vfs",
        "store.additional",
        "store.bigdata",
        "store.catalog",
        "store.containers",
        "store.contents",
        "store.database",
        "store.graphroot",
        "store.images",
        "store.items",
        "store.layeritems",
        "store.layerstore",
        "store.metadata",
    },
    "store.commit": {"architecture", "compression", "store.items", "store.layeritems", "store.storage"},
    "store.upkeep.rows": {"store.database", "store.upkeep.report"},
    "store.upkeep.leftovers": {
        "files",
        "driver.counter",
        "driver.mounter",
        "store.bigdata",
        "store.containers",
        "store.database",
        "store.metadata",
        "store.upkeep.report",
        "store.storage",
    },
    "store.upkeep.additions": {
        "tar_stream",
        "store.additional",
        "store.items",
        "store.upkeep.report",
        "store.tarsplit",
    },
    "store.upkeep.check": {
        "driver.home",
        "store.upkeep.additions",
        "store.database",
        "store.images",
        "store.upkeep.layertree",
        "store.upkeep.leftovers",
        "store.metadata",
        "store.upkeep.report",
        "store.upkeep.rows",
        "store.storage",
        "store.tarsplit",
    },
    "store.upkeep.repair": {
        "files",
        "driver.mounter",
        "store.upkeep.check",
        "store.database",
        "store.images",
        "store.upkeep.leftovers",
        "store.metadata",
        "store.upkeep.report",
        "store.upkeep.rows",
        "store.storage",
    },
    "store.upkeep.sizes": {"files", "store.bigdata", "store.items", "store.metadata", "store.storage"},
    "store.upkeep.prune": {
        "store.database",
        "store.items",
        "store.metadata",
        "store.upkeep.sizes",
        "store.storage",
    },
    "store.upkeep.usage": {"store.items", "store.upkeep.prune", "store.upkeep.sizes", "store.storage"},
    "store.migration": {
        "tar",
        "tar_stream",
        "store.layer",
        "store.layerstore",
        "store.metadata",
        "store.tarsplit",
    },
    "store.truncindex": set(),
    "store.initlayer": {"files"},
    "store.v1image": set(),
    "store.graph": {
        "fusestore",  # its version
        "architecture",
        "files",
        "tar_stream",
        "driver.api",
        "store.database",
        "store.metadata",
        "store.registered",
        "store.truncindex",
        "store.v1image",
    },
    "transport.*": {
        "architecture",
        "compression",
        "reference",
        "tar",
        "store.images",
        "store.items",
        "store.layer",
        "store.layeritems",
        "store.storage",
        "transport.*",
    },
    "cli": {"fusestore", "config"},  # its version
    "cli.*": {"*"},
    "__main__": {"cli", "cli.*"},
}

# Modules of others that only some of ours may import: (who is bound, what they import, who is free).
RESERVED = [
    ("*", "ctypes", {"syscalls"}),
    ("*", "pyfuse3", {"driver.*operations", "driver.loop", "driver.server", "cli.doctor"}),
    ("driver.*", "subprocess", {"driver.mounter"}),
    ("driver.union*", "logging", set()),
]

# In lines: the most that one may have, and the median of them all.
MODULE_LINES = 650, 200
FUNCTION_LINES = 64, 10


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "fusestore"


PATHS = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_bytes(), path) for name, path in PATHS.items()}
MODULES = sorted(PATHS)


def is_package(module: str) -> bool:
    return PATHS[module].name == "__init__.py"


def nodes(tree: ast.AST, type_checking: bool) -> Iterator[ast.AST]:
    """Every node of the tree; without those under `if TYPE_CHECKING:` unless asked for."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test) and not type_checking:
            for statement in child.orelse:
                yield from nodes(statement, type_checking)
        else:
            yield from nodes(child, type_checking)


def imports(module: str, type_checking: bool = True) -> set[str]:
    """The full names of the modules that this one imports; of others, `a.b` for `from a.b import c`."""
    found = set()
    package = f"fusestore.{module}".removesuffix(".fusestore").split(".")
    for node in nodes(TREES[module], type_checking):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = len(package) - node.level + is_package(module)
            base = ".".join([*(package[:up] if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner.removeprefix("fusestore.") in PATHS else base)
    return found


def own_imports(module: str, type_checking: bool = True) -> set[str]:
    return {
        name.removeprefix("fusestore.")
        for name in imports(module, type_checking)
        if name == "fusestore" or name.startswith("fusestore.")
    }


def allowed(module: str) -> set[str]:
    if is_package(module):
        below = {"*"} if module == "fusestore" else {f"{module}.*"}
        return below | ALLOWED.get(module, set())
    for pattern in sorted(ALLOWED, key=lambda key: "*" in key):
        if fnmatchcase(module, pattern):
            return ALLOWED[pattern]
    pytest.fail(f"fusestore.{module} has no row in ALLOWED of {__file__}: add what it may import")


def matches(module: str, patterns: set[str]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_what_its_row_allows(module):
    may = allowed(module) | EVERYWHERE
    wrong = {name for name in own_imports(module) if not matches(name, may)}
    assert not wrong, f"fusestore.{module} may not import {sorted(wrong)}"


def test_no_import_cycles():
    graph = {module: own_imports(module, type_checking=False) - {module} for module in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as cycle:
        pytest.fail(" <- ".join(cycle.args[1]))


@pytest.mark.parametrize(
    ("bound", "reserved", "free"), RESERVED, ids=[f"{row[0]}-{row[1]}" for row in RESERVED]
)
def test_imports_of_reserved_modules(bound, reserved, free):
    wrong = {
        module
        for module in MODULES
        if fnmatchcase(module, bound) and not matches(module, free)
        if reserved in {name.split(".")[0] for name in imports(module)}
    }
    assert not wrong, f"{reserved} is imported by {sorted(wrong)}"


def test_command_line_starts_without_trio_and_pyfuse3():
    code = "import sys, fusestore.cli; print(*sorted({'trio', 'pyfuse3'} & sys.modules.keys()))"
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    assert answer.stdout.strip() == ""


def check_sizes(sizes: dict[str, int], most: int, median: int) -> None:
    too_long = {name: size for name, size in sizes.items() if size > most}
    assert not too_long, f"longer than {most} lines"
    assert statistics.median(sizes.values()) <= median


def test_module_sizes():
    check_sizes({name: len(path.read_bytes().splitlines()) for name, path in PATHS.items()}, *MODULE_LINES)


def test_function_sizes():
    sizes = {
        f"{module}:{node.name}:{node.lineno}": node.end_lineno - node.lineno + 1
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    check_sizes(sizes, *FUNCTION_LINES)
