"""The app of docs/fastapi.md, as pasted, on every async driver."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from sqlalchemy import make_url
from support.app import Base as OurBase


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "fastapi.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

KEY = {"Idempotency-Key": "key-1"}


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "postgresql+psycopg", "postgresql+asyncpg"])
def test_the_app_answers_as_the_page_says(driver, monkeypatch, request):
    port = request.getfixturevalue(driver.partition("+")[0])
    url = make_url(port.url).set(drivername=driver).render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", url)
    OurBase.metadata.tables["payments"].drop(port.engine)
    namespace = {"__name__": "app"}
    exec(compile("\n".join([*BLOCKS, MENDED_LATER]), "docs/fastapi.md", "exec"), namespace)
    namespace["Base"].metadata.create_all(port.engine)
    try:
        asyncio.run(use(namespace["app"]))
        with port.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*), sum(amount) FROM payments").one() == (2, 107)
            assert connection.exec_driver_sql("SELECT DISTINCT scope FROM execution_requests").scalars().all() == [
                "acme"
            ]
    finally:
        namespace["Base"].metadata.drop_all(port.engine)
        OurBase.metadata.create_all(port.engine)


# The mistake that the page speaks of, and its correction between a delivery and the retry.
MENDED_LATER = """
results = [object(), "mended"]

@app.post("/mistake")
async def mistake() -> str:
    @guard.idempotent(request_id="{key}", action="mistake", scope="acme", session_factory=Sessions)
    async def run(session: AsyncSession, key: str):
        return results.pop(0)

    return await run("key-3")
"""


async def use(app):
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            body = {"amount": "100"}
            answers = await asyncio.gather(*(client.post("/payments", json=body, headers=KEY) for _ in range(8)))
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.text for answer in answers}) == 1
            assert answers[0].json()["amount"] == "100"

            again = await client.post("/payments/in-a-dependency", json=body, headers=KEY)
            assert (again.status_code, again.text) == (200, answers[0].text)
            other = await client.post("/payments", json={"amount": "999"}, headers=KEY)
            assert (other.status_code, other.json()) == (422, {"error": "this key was used with another payload"})
            bad = await client.post("/payments", json=body, headers={"Idempotency-Key": "x" * 300})
            assert bad.status_code == 400
            mistakes = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=mistakes, base_url="http://app") as other_client:
                answers = [await other_client.post("/mistake") for _ in range(3)]
            assert [answer.status_code for answer in answers] == [500, 200, 200]
            assert [answer.text for answer in answers[1:]] == ['"mended"'] * 2
            new = await client.post(
                "/payments/in-a-dependency", json={"amount": "7"}, headers={"Idempotency-Key": "key-2"}
            )
            assert (new.status_code, new.json()["amount"]) == (200, "7")
