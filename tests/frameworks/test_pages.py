"""The whole apps of docs/frameworks, followed to the letter on both databases, with their own migrations and tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, make_url
from support.ports import ports


TESTS = Path(__file__).resolve().parents[1]
PAGES = sorted(path.name for path in (TESTS.parent / "docs" / "frameworks").glob("*.md") if path.name != "README.md")


def driver(url, page):
    name = make_url(url).drivername
    return {"sqlite": "sqlite+aiosqlite"}.get(name, name) if page == "litestar.md" else name


@pytest.mark.thorough
@ports("sqlite", among=["sqlite", "postgresql"], argument="empty_url")
@pytest.mark.parametrize("page", PAGES)
def test_the_app_of_the_page_works_with_its_own_tests(page, empty_url, tmp_path):
    url = make_url(empty_url).set(drivername=driver(empty_url, page)).render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, TESTS / "frameworks" / "follow.py", f"frameworks/{page}", tmp_path / "app", url],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No new upgrade operations detected" in done.stdout
    assert "2 passed" in done.stdout
    engine = create_engine(empty_url)
    assert {"execution_requests"} < set(inspect(engine).get_table_names())
    engine.dispose()
