"""What the package promises about its imports."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import ROOT


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_package_is_cheap_to_import() -> None:
    assert run("import sys, lit_backdoor; print('torch' in sys.modules)").strip() == "False"


def test_the_task_and_the_functions_need_no_lightning() -> None:
    code = "import sys, lit_backdoor.task, lit_backdoor.functional; print([m for m in sys.modules if m in {names}])"
    assert run(code.replace("{names}", "('lightning', 'transformer_lens', 'matplotlib')")).strip() == "[]"


FLOORS = (
    {"limits"},
    {"functional", "task"},
    {"show", "model", "datamodule"},
    {"runs", "module"},
    {"analysis", "callbacks", "logger", "pretrained"},
    {"report", "sweep"},
    {"cli"},
)
"""The rooms of the package, from the ground up: each imports only from floors below its own."""

ON_TOP = {"__init__", "__main__"}
"""What may import anything: the package itself and ``python -m``."""


def imports_of_rooms() -> Iterator[tuple[Path, str, str]]:
    """(file, its room, the room that it imports), for every import, those inside functions too."""
    package = ROOT / "lit_backdoor"
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: write imports in full"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for parts in (name.split(".") for name in names):
                if parts[0] == "lit_backdoor" and len(parts) > 1 and parts[1] != room:
                    yield path, room, parts[1]


def test_nothing_imports_upwards() -> None:
    floor = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
    entries = (ROOT / "lit_backdoor").iterdir()
    there = {path.stem for path in entries if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - ON_TOP == floor.keys()
    upward = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for path, room, imported in imports_of_rooms()
        if room not in ON_TOP and imported in floor and floor[imported] >= floor[room]
    ]
    assert upward == []


def test_a_wheel_has_every_package() -> None:
    packages = {path.parent.relative_to(ROOT) for path in (ROOT / "lit_backdoor").rglob("__init__.py")}
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == {".".join(path.parts) for path in packages} | {"lit_backdoor.configs"}


def test_no_function_hides_the_module_it_lives_in() -> None:
    code = (
        "import pkgutil, importlib, types, lit_backdoor.functional as f; print([m.name for m in pkgutil.iter_modules("
    )
    code += "f.__path__) if importlib.import_module(f'{f.__name__}.{m.name}') is not getattr(f, m.name)])"
    assert run(code).strip() == "[]"


FACADES = {"load_pretrained", "read_run", "replay", "parser", "run"}
"""What ``lit_backdoor`` hands on from its rooms, and what every subcommand has."""


def test_no_name_is_defined_in_two_rooms() -> None:
    places: dict[str, list[str]] = {}
    for path in sorted((ROOT / "lit_backdoor").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1 and name not in FACADES} == {}


def test_callbacks_know_neither_the_module_nor_the_task() -> None:
    known = {imported for _, room, imported in imports_of_rooms() if room == "callbacks"}
    assert not known & {"module", "datamodule", "task", "model"}
