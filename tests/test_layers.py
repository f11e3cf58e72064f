"""The floors of the architecture: imports point downward, and each library has one home."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HOMES = {
    "dagster": "assets",
    "duckdb": "uniq_pipeline/warehouse.py",
    "confluent_kafka": "uniq_pipeline/kafka",
    "sqlalchemy": "uniq_pipeline/ledger",
    "click": "uniq_pipeline/cli",
    "prometheus_client": "uniq_pipeline/metrics/exposition.py",
    "pyarrow.parquet": "uniq_pipeline/lake.py",
    "google.protobuf": "uniq_pipeline/refined.py",
}

# Each module may import from its own floor and from those below.
FLOORS = [
    # the pure core: no file, no network, no clock
    "errors setting_sources connection config records schemas windows spans names entries extract frames coupons "
    "lateness offsets queries intake",
    # adapters: each the only one to know its library or its kind of file
    "files lake warehouse ledger kafka refined",
    # use cases
    "results loading drain ingest merging rewrite rejudge move restore renew redrain compact expire count rollup sets "
    "publish forward catalog maintain backfill rebuild verify repair metrics once tick demo health trends notify",
    # the ways in
    "cli assets",
]
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules.split()}
# The demo's stack is started by the command of the same name and starts the ways in; it imports neither.

SOURCES = sorted([*(ROOT / "uniq_pipeline").rglob("*.py"), *(ROOT / "assets").rglob("*.py")])


def imports_of(path):
    """Dotted names that a file imports, wherever in it: `from a import b` is both `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name):
    """`lake` of `uniq_pipeline.lake.Lake`, `assets` of `assets.jobs`, None of what is not ours."""
    parts = name.split(".")
    if parts[0] == "assets":
        return "assets"
    return parts[1] if parts[0] == "uniq_pipeline" and len(parts) > 1 else None


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("library, home", HOMES.items())
def test_a_library_has_exactly_one_importing_home(library, home):
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        for name in imports_of(path)
        if name == library or name.startswith(f"{library}.") or library == "dagster" and name.startswith("dagster_")
    }
    assert importers, f"nothing imports {library}"
    assert all(importer == home or importer.startswith(f"{home}/") for importer in importers), importers


def test_the_oracle_of_the_tests_is_not_imported_by_the_product():
    assert not [path for path in SOURCES if any(name.startswith("datasketches") for name in imports_of(path))]


def test_every_module_has_its_floor():
    found = {module_of(name_of(path)) for path in SOURCES} - {None, "__init__"}
    assert found - set(FLOOR_OF) == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_downward(path):
    importer = module_of(name_of(path))
    if importer is None:
        return  # the package's own __init__ holds its version only
    upward = {
        name
        for name in imports_of(path)
        if (imported := module_of(name)) in FLOOR_OF and FLOOR_OF[imported] > FLOOR_OF[importer]
    }
    assert upward == set()


def test_no_module_of_the_library_loads_dagster():
    modules = [name_of(path) for path in SOURCES if path.is_relative_to(ROOT / "uniq_pipeline")]
    script = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("dagster", "assets", "datasketches")))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


def test_the_core_loads_no_adapters_library():
    script = f"""
import importlib, sys
for name in {FLOORS[0].split()!r}:
    importlib.import_module("uniq_pipeline." + name)
print(sorted(set({list(HOMES)!r}) & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("library", [*HOMES, "datasketches"])
def test_the_linter_refuses_a_library_outside_its_home(library):
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--stdin-filename", "uniq_pipeline/windows.py", "-"],
        input=f"import {library}\n\nprint({library})\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert found.returncode == 1 and "TID251" in found.stdout and f"`{library}` is banned" in found.stdout
