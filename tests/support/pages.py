"""Follows a how-to page exactly, in an app that a new user might have: runs its commands and makes its edits."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support import commands


ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {"alembic": "alembic", "safeagent-sa": "safeagent_sa"}

MODELS = """
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention={
        "ix": "ix_%(column_0_label)s", "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s", "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s"})


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
"""
ORDERS = """
def upgrade() -> None:
    op.create_table("orders", sa.Column("id", sa.Integer(), nullable=False), sa.PrimaryKeyConstraint("id", name="pk_orders"))
    op.execute("INSERT INTO orders (id) VALUES (1)")


def downgrade() -> None:
    op.drop_table("orders")
"""


@dataclass(frozen=True)
class Block:
    section: str
    language: str
    text: str


def blocks(page):
    """Return the code blocks of a page in docs/, in order, each with its heading."""
    section, found = "", []
    for heading, language, text in re.findall(
        r"^(?:#+ ([^\n]*)|```(\w+)\n(.*?)^```$)", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL
    ):
        section = heading or section
        if language:
            found.append(Block(section, language, text))
    return found


class App:
    """An app with a history: one table, one row, a naming convention."""

    def __init__(self, folder, url, template="generic", *, starts_processes=False):
        self.folder, self.url, self.starts_processes = folder, url, starts_processes
        folder.mkdir()
        self.run(f"alembic init -t {template} migrations")
        (folder / "models.py").write_text(MODELS)
        self.edit("alembic.ini", r"^sqlalchemy\.url = .*$", "sqlalchemy.url = " + url.replace("%", "%%"))
        self.run("alembic revision -m orders")
        (path,) = self.versions()
        source = path.read_text()
        path.write_text(source[: source.index("def upgrade")] + ORDERS)
        self.first = path.name.partition("_")[0]
        self.run("alembic upgrade head")

    def versions(self):
        return list((self.folder / "migrations" / "versions").glob("*.py"))

    def edit(self, name, pattern, replacement):
        path = self.folder / name
        edited, count = re.subn(pattern, lambda _: replacement, path.read_text(), flags=re.MULTILINE)
        assert count, f"{pattern} is not in {name}"
        path.write_text(edited)

    def run(self, line, **environment):
        """Run a line of a page, in this process unless the app starts real ones."""
        *settings, program = re.match(r"((?:\w+=\S+ )*)(.*)", line).groups()
        name, *words = shlex.split(program, comments=True)
        environment = dict(each.split("=", 1) for each in shlex.split(settings[0])) | environment
        if self.starts_processes:
            return self.python("-m", PROGRAMS[name], *words, **environment)
        assert name in PROGRAMS, line
        return _said(commands.run(name, *words, cwd=self.folder, **{"DATABASE_URL": self.url} | environment))

    def python(self, *arguments, **environment):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "DATABASE_URL": self.url, "PYTHONPATH": ".", **environment},
        )
        return _said(done)

    def follow(self, block):
        """Follow a block; return the output of its commands."""
        said = []
        if block.language == "sh":
            said = [self.run(line) for line in block.text.splitlines()]
        elif block.text.startswith("# "):
            where, lines = block.text.split("\n", 1)
            name = re.match(r"# ([\w/.]+)", where).group(1)
            path = self.folder / name
            if where.endswith("at the end"):
                path.write_text(path.read_text() + lines)
            elif where.endswith("under [alembic]"):
                self.edit(name, r"^\[alembic\]$", f"[alembic]\n{lines}")
            else:
                self.edit(name, re.escape(where.partition(": ")[2]), lines.rstrip())
        return said


def _said(done):
    assert done.returncode == 0, f"{done.args}\n{done.stdout}{done.stderr}"
    return done.stdout
