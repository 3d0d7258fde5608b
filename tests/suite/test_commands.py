"""Commands that run in this process leave nothing behind of the app, and everything of the environment."""

import sys

from support import commands


def test_only_the_modules_of_the_app_are_forgotten(tmp_path, monkeypatch):
    """An extension module that was forgotten and imported again (asyncpg's) crashed the interpreter."""
    environment = tmp_path / "venv"
    environment.mkdir()
    monkeypatch.setattr(sys, "prefix", str(environment))
    monkeypatch.syspath_prepend(environment)
    (environment / "installed_library.py").write_text("")
    (tmp_path / "shop_models.py").write_text("")
    assert commands.run("alembic", "init", "migrations", cwd=tmp_path).returncode == 0
    (tmp_path / "migrations" / "env.py").write_text("import installed_library, shop_models")
    ran = commands.run("alembic", "current", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "installed_library" in sys.modules
    assert "shop_models" not in sys.modules
    del sys.modules["installed_library"]
