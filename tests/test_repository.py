"""Documents, versions and pins of the repository are true."""

import re
import runpy
import tomllib
from importlib.metadata import PackageNotFoundError, requires

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lit_backdoor
from lit_backdoor.runs.schema import TABLES
from tests.helpers import ROOT


def test_what_the_documents_name_exists() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")]
    assert len(documents) >= 6
    for document in documents:
        text = document.read_text()
        for path in re.findall(r"`?\b((?:configs|tests|lit_backdoor|docs|benchmarks)/[\w./]+\.(?:py|yaml|md))\b", text):
            assert (ROOT / path).exists(), (document.name, path)
        for link in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (document.parent / link).exists(), (document.name, link)


def test_the_page_of_columns_is_what_the_docstrings_say() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "columns.py"))["page"]()
    assert page == (ROOT / "docs" / "columns.md").read_text(), "python docs/columns.py > docs/columns.md"
    for table, columns in TABLES.items():
        described = page.split(f"## {table}\n")[1].split("\n## ")[0]
        for column in columns:
            assert f"`{column.name}`" in described or column.name in ("step", "probe"), (table, column.name)


def test_the_commands_that_ci_runs_are_in_the_readme() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    for end in ("-m pytest", "-m pytest tests/contract"):
        assert len([line for line in lines if line.endswith(end)]) == 1, end


def test_every_file_says_the_same_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == lit_backdoor.__version__
    assert re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == lit_backdoor.__version__


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)  # no host, no path
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}


def needed(package: str, extras: frozenset[str], names: set[str]) -> set[str]:
    """Add what a package needs to `names`, and what that needs, as far as it is installed."""
    try:
        requirements = [Requirement(line) for line in requires(package) or []]
    except PackageNotFoundError:
        return names
    for requirement in requirements:
        name, marker = canonicalize_name(requirement.name), requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            fresh = name not in names
            names.add(name)
            if fresh or requirement.extras:
                needed(name, frozenset(requirement.extras), names)
    return names


def test_constraints_pin_whatever_an_installation_brings() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names: set[str] = set()
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name != "lit-backdoor":
            names |= {name} | needed(name, frozenset(requirement.extras), set())
    pinned = pins()
    assert len(names) > 80 and pinned["torch"] == "2.13.0"
    not_frozen = re.compile("nvidia-.*|cuda-.*|triton|setuptools")  # torch's for CUDA; what pip freeze omits
    assert {name for name in names if not not_frozen.fullmatch(name)} <= set(pinned)
