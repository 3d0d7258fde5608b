"""The engine of the app: DATABASE_URL, or a SQLite file in this folder."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

import safeagent_sa.sqlite


DATABASE_URL = os.environ.get("DATABASE_URL") or f"sqlite:///{Path(__file__).with_name('payments.db')}"

engine = create_engine(DATABASE_URL)
if engine.dialect.name == "sqlite":
    safeagent_sa.sqlite.configure(engine)

SessionLocal = sessionmaker(engine)
