"""The block of docs/logs.md, as pasted, with the output that the page shows."""

import io
import logging
import re
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from safeagent_sa import ExecutionGuard, metadata, sqlite


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "logs.md").read_text()


def test_the_page_does_what_it_says(tmp_path, monkeypatch):
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    sqlite.configure(engine)
    metadata.create_all(engine)
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (shown,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.setattr("sys.stderr", output := io.StringIO())
    names = {"SessionLocal": sessionmaker(engine), "guard": ExecutionGuard()}
    try:
        exec(compile(block, "docs/logs.md", "exec"), names)
    finally:
        logging.getLogger("shop").removeHandler(names["handler"])
        engine.dispose()
    assert output.getvalue() == shown
