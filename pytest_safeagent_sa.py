"""The pytest plugin of safeagent_sa: the fixture `explore_faults`.

A module of its own, so that pytest loads nothing of the library before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def explore_faults(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Explore a handler under faults: see `safeagent_sa.testing.explore_faults`; the report is printed with -s or -rP."""
    from safeagent_sa.testing import explore_faults as explore  # noqa: PLC0415 - see above

    def explore_and_print(*arguments: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        report = explore(*arguments, **options)
        print(f"\n{request.node.name}\n{report}")  # noqa: T201 - pytest captures it for its own report
        return report

    return explore_and_print
