"""The recipes for frameworks without a module: `make test-recipes`, in environments that have them."""

import pytest


def pytest_ignore_collect(collection_path, config):
    """Leave the folder to the run that asks for it: elsewhere its imports would fail."""
    return None if config.option.markexpr == "recipes" or collection_path.name == "conftest.py" else True


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/recipes/" in item.path.as_posix():
            item.add_marker(pytest.mark.recipes)
