"""Who may import whom, what stays out of a quick start, and what the code never does."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("shared", "client", "server", "simulations")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]
#: What each package may know besides itself.
MAY_IMPORT = {
    "shared": set(),
    "client": {"shared"},
    "server": {"shared"},
    "simulations": {"shared", "client", "server"},
}
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "opacus",
    "flwr",
    "ray",
    "matplotlib",
    "pyarrow",
    "onnx",
    "onnxruntime",
    "tokenizers",
}
#: Modules that answer `--help`.
FRONT = [
    "shared/terminal.py",
    "shared/errors.py",
    "client/cli_export.py",
    *(f"{package}/{name}.py" for package in PACKAGES[1:] for name in ("__init__", "__main__", "cli")),
]


def tree(path: str | Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST] | list[ast.stmt]) -> set[str]:
    """Top-level names of the packages that the given nodes import."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def calls(module: ast.Module) -> set[str]:
    """Everything the module calls, as written: `print`, `torch.load`."""
    return {ast.unparse(node.func) for node in ast.walk(module) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", NAMES)
def test_imports_keep_to_the_layers(path: str) -> None:
    package = Path(path).parts[0]
    others = imported(ast.walk(tree(path))) & {*PACKAGES, "tests", "benchmarks"}
    assert others - {package} <= MAY_IMPORT[package]


def test_no_relative_imports_hide_from_that_check() -> None:
    relative = [
        path for path in NAMES for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_the_import_linter_agrees() -> None:
    script = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", FRONT)
def test_what_answers_help_imports_nothing_heavy_at_the_top(path: str) -> None:
    top = [
        node for node in tree(path).body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    assert not imported(top) & (HEAVY | {"numpy"})


@pytest.mark.parametrize("path", NAMES)
def test_a_file_reads_in_one_sitting(path: str) -> None:
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 300


def test_there_are_no_drawers() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "legacy", "tools", "lib"}
    assert [path for path in NAMES if set(Path(path).with_suffix("").parts) & drawers] == []


@pytest.mark.parametrize("path", NAMES)
def test_library_code_neither_prints_nor_asserts(path: str) -> None:
    module = tree(path)
    assert "print" not in calls(module)
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(module))


@pytest.mark.parametrize("path", NAMES)
def test_nothing_that_is_read_can_run_code(path: str) -> None:
    module = tree(path)
    unsafe = {"torch.load", "torch.save", "eval", "exec", "np.load", "os.system", "shelve.open", "joblib.load"}
    assert not imported(ast.walk(module)) & {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    loads = [node for node in ast.walk(module) if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load"]
    assert all(any(word.arg == "allow_pickle" and not literal(word.value) for word in node.keywords) for node in loads)
    assert not calls(module) & (unsafe - {"np.load"})
    given = {
        word.arg: literal(word.value)
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        for word in node.keywords
    }
    assert not given.get("trust_remote_code", False)
    assert not given.get("shell", False)


def literal(node: ast.expr) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


@pytest.mark.parametrize("path", NAMES)
def test_warnings_are_not_silenced_at_import(path: str) -> None:
    top = [node for node in tree(path).body if isinstance(node, ast.Expr)]
    assert not any("filterwarnings" in ast.unparse(node) or "simplefilter" in ast.unparse(node) for node in top)


def test_the_wheel_holds_the_four_packages_and_no_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = project["tool"]["setuptools"]["packages"]["find"]["include"]
    from setuptools import find_packages

    assert {name.split(".")[0] for name in find_packages(str(ROOT), include=wanted)} == set(PACKAGES)
    assert project["project"]["license"] == "Apache-2.0"


def test_flower_finds_the_apps_that_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name in project["tool"]["flwr"]["app"]["components"].values():
        module, _, attribute = name.partition(":")
        body = tree(module.replace(".", "/") + ".py").body
        # Flower reads the file and wants a literal assignment.
        assert any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == attribute for node in body)


def test_no_test_folder_lacks_its_package_file() -> None:
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
