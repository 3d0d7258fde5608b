"""Follows a page that has a whole app, to the letter: `python follow.py PAGE FOLDER URL`, in one process.

What the page installs must be in this environment and is imported once; each command runs in a fork, since frameworks keep models
and mappers in globals. With `--install WHEELS` each command is a real one, in an environment that the page's own `pip install`
fills; safeagent_sa comes from the folder of wheels.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

from support import commands
from support.pages import blocks


class Follower:
    def __init__(self, folder: Path, url: str, wheels: Path | None = None) -> None:
        self.folder, self.url, self.wheels = folder, url, wheels
        self.environment: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if wheels is not None:
            self.venv = folder.with_name(f"{folder.name}-venv")
            subprocess.run([sys.executable, "-m", "venv", self.venv], check=True)

    def follow(self, page: str) -> None:
        for block in blocks(page):
            if block.language == "sh":
                for line in block.text.splitlines():
                    print(f"$ {line}", flush=True)
                    self.run(line)
            elif block.text.startswith("# "):
                self.write(*block.text.split("\n", 1))

    def write(self, where: str, text: str) -> None:
        """Write a file, or replace the line that the block names in an existing one."""
        name, instead, old = re.fullmatch(r"# ([\w/.]+)(, instead of: (.*))?", where).groups()
        path = self.folder / name
        if instead is None:
            path.write_text(text)
        else:
            before = path.read_text()
            assert before.count(f"{old}\n") == 1, f"{old!r} is not in {name}"
            path.write_text(before.replace(f"{old}\n", text))

    def run(self, line: str) -> None:
        words = shlex.split(line)
        if words[0] == "export":  # the page's URL is an example
            name, _, _ = words[1].partition("=")
            assert name == "DATABASE_URL"
            self.environment[name] = self.url
        elif self.wheels is not None:
            self._run_really(line)
        elif words[:2] == ["pip", "install"]:
            for requirement in words[2:]:
                importlib.import_module(requirement.partition("[")[0].replace("-", "_"))
        else:
            self._run_in_a_fork(words)

    def _run_in_a_fork(self, words: list[str]) -> None:
        if (child := os.fork()) == 0:
            code = 1
            try:
                done = commands.run(*words, cwd=self.folder, **self.environment)
                print(done.stdout, done.stderr, flush=True)
                code = done.returncode
            finally:
                os._exit(code)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"{shlex.join(words)}: exit code {code}")

    def _run_really(self, line: str) -> None:
        environment = {**os.environ, **self.environment, "PIP_FIND_LINKS": str(self.wheels), "PIP_QUIET": "1"}
        environment["PATH"] = f"{self.venv / 'bin'}:{environment['PATH']}"
        for name in ("PYTHONPATH", "PYTHONHOME", "SAFEAGENT_DATABASE_URL"):
            environment.pop(name, None)
        subprocess.run(["bash", "-euc", line], cwd=self.folder, env=environment, check=True)


if __name__ == "__main__":
    page, folder, url, *options = sys.argv[1:]
    warnings.simplefilter("ignore")  # what frameworks warn of is theirs
    Follower(Path(folder), url, Path(options[1]) if options else None).follow(page)
