"""The pytest plugin of safeagent_sa: the fixture `explore_faults`.

It is a separate module, so pytest loads the library only when a test uses the fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def explore_faults(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return `safeagent_sa.testing.explore_faults`, which also prints its report; pytest shows it with -s or -rP."""
    from safeagent_sa.testing import explore_faults as explore  # noqa: PLC0415 - see the top

    def explore_and_print(*arguments: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        report = explore(*arguments, **options)
        print(f"\n{request.node.name}\n{report}")  # noqa: T201 - pytest captures it for its own report
        return report

    return explore_and_print
