"""docs/architecture.md names paths, functions and classes that exist, and every package."""

import ast
import re
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "safeagent_sa"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def paths(text):
    return re.findall(r"`([\w./-]+(?:/|\.(?:py|md|toml)))`", text)


def found(path):
    """The path in the package or in the repository, or None."""
    return next((place / path for place in (PACKAGE, ROOT) if (place / path).exists()), None)


def test_every_path_exists():
    assert len(paths(PAGE)) > 50
    assert [path for path in paths(PAGE) if found(path) is None] == []


def test_every_function_that_decides_exists():
    table = PAGE.partition("## Where is it decided?")[2].partition("##")[0]
    decisions = re.findall(r"\| `([\w/.]+)` \| `(\w+)` \|$", table, re.MULTILINE)
    assert len(decisions) >= 10
    modules = [(found(path), name) for path, name in decisions]
    assert [name for path, name in modules if path and f"def {name}(" not in path.read_text()] == []


def test_the_tree_has_every_package():
    folders = {f"{path.parent.relative_to(PACKAGE)}/" for path in PACKAGE.rglob("__init__.py")} - {"./"}
    named = set(paths(PAGE))
    assert [folder for folder in folders if not any(name.startswith(folder) for name in named)] == []


def test_the_docstring_of_a_private_package_names_its_modules():
    packages = [path for path in PACKAGE.rglob("__init__.py") if any(part.startswith("_") for part in path.parts[:-1])]
    assert len(packages) >= 7
    missing = []
    for package in packages:
        said = ast.get_docstring(ast.parse(package.read_text())) or ""
        modules = [path.stem for path in package.parent.glob("*.py") if path.name != "__init__.py"]
        missing += [f"{package.parent.name}/{module}" for module in modules if not re.search(rf"\b{module}\b", said)]
    assert missing == []
