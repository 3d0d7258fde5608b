"""pytest-alembic's four stable tests for the packaged migrations, on every database."""

from pathlib import Path

import pytest
from pytest_alembic.tests import (  # noqa: F401 - collected here
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)
from sqlalchemy import create_engine


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def alembic_config():
    return {"script_location": str(ROOT / "migrations")}


@pytest.fixture
def alembic_engine(empty_url):
    engine = create_engine(empty_url)
    yield engine
    engine.dispose()
