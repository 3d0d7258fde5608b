"""The first pages that a new user reads, followed to the letter: each file, each command, each output that they show.

Here the commands run in this environment; `make start` follows the same pages in new ones, with a wheel.
"""

from contextlib import nullcontext

import pytest
from frameworks.follow import Follower


@pytest.mark.thorough
@pytest.mark.parametrize("page", ["start/first-transaction.md", "start/your-app.md"])
def test_the_page_works_as_written(page, tmp_path):
    Follower(tmp_path / "app", "", here=True).follow(page)


TRUE = "```sh\necho one\necho two\n```\n\n```text\none\ntwo\n```\n\n```sh\ntest -e no    # fails\n```\n"


@pytest.mark.parametrize(
    ("right", "wrong", "is_true"),
    [
        ("one", "one", True),
        ("```text\none\ntwo", "```text\none\nthree", False),
        ("echo two", "false", False),
        ("test -e no ", "true ", False),
        ("    # fails", "", False),
        ("```sh\ntest", "```python\n# in no.py\ndef f():\n    pass\n```\n\n```sh\ntest", False),
    ],
)
def test_a_page_that_is_not_true_is_found(right, wrong, is_true, tmp_path):
    assert right in TRUE
    (tmp_path / "page.md").write_text(TRUE.replace(right, wrong, 1))
    with nullcontext() if is_true else pytest.raises((AssertionError, OSError, SystemExit)):
        Follower(tmp_path / "app", "", here=True).follow(tmp_path / "page.md")
