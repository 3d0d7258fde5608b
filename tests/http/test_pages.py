"""The app of docs/http-litestar.md, as pasted."""

import asyncio
import sys
import types
import warnings

from sqlalchemy import make_url
from support.app import Base as OurBase
from support.pages import blocks
from support.web import Client


def test_the_app_of_litestar(postgresql, monkeypatch):
    url = make_url(postgresql.url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    monkeypatch.setenv("ASYNC_DATABASE_URL", url)
    module = types.ModuleType("app")  # Litestar looks up annotations in the module of a handler
    monkeypatch.setitem(sys.modules, "app", module)
    names = vars(module)
    code = "\n".join(block.text for block in blocks("http-litestar.md") if block.language == "python")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of advanced-alchemy's imports
        exec(compile(code, "docs/http-litestar.md", "exec"), names)
    OurBase.metadata.tables["payments"].drop(postgresql.engine)
    with postgresql.engine.begin() as connection:
        names["Base"].metadata.create_all(connection)
    try:
        answers = asyncio.run(use(names))
        with postgresql.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM payments").scalar() == 1
    finally:
        names["Base"].metadata.drop_all(postgresql.engine)
        OurBase.metadata.create_all(postgresql.engine)
    assert [answer.status_code for answer in answers] == [201, 201, 422, 400]
    assert answers[0].content == answers[1].content


async def use(names):
    client = Client(names["app"], **{"X-API-Key": "key-of-acme"})
    async with names["app"].lifespan():
        answers = [
            await client.asend("POST", "/payments", key=key, json={"amount": amount})
            for key, amount in [("k-1", 1), ("k-1", 1), ("k-1", 2), (None, 1)]
        ]
    await names["engine"].dispose()
    return answers
