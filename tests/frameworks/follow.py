"""Follows a page that has a whole app, to the letter: `python follow.py PAGE FOLDER URL`, in one process.

What the page installs must be in this environment and is imported once; each command runs in a fork, since frameworks keep models
and mappers in globals. With `--here` each command is a real one in this environment, and what the page shows as output must be in
theirs. With `--install WHEELS` the environment is a new one that the page's own `pip install` fills; safeagent_sa comes from the folder of
wheels.
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
    def __init__(self, folder: Path, url: str, wheels: Path | None = None, *, here: bool = False) -> None:
        self.folder, self.url, self.wheels = folder, url, wheels
        self.environment: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.venv = Path(sys.prefix) if here else None
        if wheels is not None:
            self.venv = folder.with_name(f"{folder.name}-venv")
            subprocess.run([sys.executable, "-m", "venv", self.venv], check=True)

    def follow(self, page: str) -> None:
        said = ""
        for block in blocks(page):
            if block.language == "sh":
                said = ""
                for line in block.text.splitlines():
                    print(f"$ {line}", flush=True)
                    said += self.run(line)
            elif block.language == "text" and said:
                assert plain(block.text) in plain(said), f"{page} shows\n{block.text}\nand its commands print\n{said}"
            elif block.text.startswith("# "):
                self.write(*block.text.split("\n", 1))

    def write(self, where: str, text: str) -> None:
        """Write a file, or replace the line or the last function that the block names in an existing one."""
        name, instead, old = re.fullmatch(r"# (?:in )?([\w/.]+)(, instead of: (.*))?", where).groups()
        path = self.folder / name
        if where.startswith("# in "):
            before, function, _ = path.read_text().partition(text.partition("(")[0] + "(")
            assert function, f"{name} has no {function}"
            path.write_text(before + text)
        elif instead is None:
            path.write_text(text)
        else:
            before = path.read_text()
            assert before.count(f"{old}\n") == 1, f"{old!r} is not in {name}"
            path.write_text(before.replace(f"{old}\n", text))

    def run(self, line: str) -> str:
        """Run a line; return what it has printed, where it was a real command."""
        words = shlex.split(line)
        if words[0] == "export":  # the page's URL is an example
            name, _, _ = words[1].partition("=")
            assert name == "DATABASE_URL"
            self.environment[name] = self.url
        elif self.wheels is None and words[:2] == ["pip", "install"]:
            for requirement in words[2:]:
                importlib.import_module(requirement.partition("[")[0].replace("-", "_"))
        elif self.venv is not None:
            return self._run_really(line)
        else:
            self._run_in_a_fork(words)
        return ""

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

    def _run_really(self, line: str) -> str:
        environment = {**os.environ, **self.environment, "PIP_QUIET": "1", "PIP_FIND_LINKS": str(self.wheels or "")}
        environment["PATH"] = f"{self.venv / 'bin'}:{environment['PATH']}"
        for name in ("PYTHONPATH", "PYTHONHOME", "SAFEAGENT_DATABASE_URL", "DATABASE_URL"):
            if name not in self.environment:
                environment.pop(name, None)
        done = subprocess.run(
            ["bash", "-euc", line], cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
        print(done.stdout, flush=True)
        if bool(done.returncode) is not line.endswith("# fails"):
            sys.exit(f"{line}: exit code {done.returncode}")
        return done.stdout


def plain(output: str) -> str:
    """Return an output without what pytest puts in front of the lines of a failure, and without white space at their ends."""
    return "\n".join(line.removeprefix("E").strip() for line in output.strip().splitlines())


if __name__ == "__main__":
    page, folder, url, *options = sys.argv[1:]
    warnings.simplefilter("ignore")  # what frameworks warn of is theirs
    wheels = Path(options[1]) if options[:1] == ["--install"] else None
    Follower(Path(folder), url, wheels, here=options == ["--here"]).follow(page)
