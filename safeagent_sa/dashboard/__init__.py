"""A web page for operators: what is in doubt, who holds what, whether the relay is late; it never reads the whole table.

Extra `dashboard`: Starlette, Jinja2 and python-multipart. Mount it behind your app's login:

```python
from safeagent_sa.dashboard import Dashboard

app.mount("/ops", Dashboard(guard, engine, may_look=lambda request: request.user.is_staff))
```

`safeagent-sa dashboard` shows the same for one person on this machine.

    _app ─► _access                       who may see what, and what a browser may do
         ─► _pages ─► _reads, _server     what is on each page, and the statements for it
         ─► _verdicts                     the only thing that is written
         ─► _charts, templates/, static/  how it looks
    _database                             one connection, read-only transactions, shared answers
"""

from __future__ import annotations

from ._app import Dashboard


__all__ = ["Dashboard"]
