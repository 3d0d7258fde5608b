"""Schemathesis finds nothing in the OpenAPI document of a guarded app, and in what the app answers."""

import itertools
from typing import Annotated

import schemathesis
from fastapi import APIRouter, Depends, FastAPI
from hypothesis import HealthCheck, given, settings
from pydantic import BaseModel, Field
from schemathesis.checks import CHECKS
from schemathesis.generation import GenerationMode
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker
from support.app import Payment

from safeagent_sa import ExecutionGuard
from safeagent_sa.integrations.fastapi import idempotent_route, key_router


class NewPayment(BaseModel):
    reference: str = Field(max_length=200, pattern=r"^[a-z]*$")
    amount: int = Field(ge=0, le=1000)


class Receipt(BaseModel):
    id: int
    amount: int


def app_of(sessions):
    def get_session():
        with sessions() as session, session.begin():
            yield session

    guard = ExecutionGuard()
    options = {"session": get_session, "scope": lambda: "acme"}
    router = APIRouter(route_class=idempotent_route(guard, **options))

    @router.post("/payments/{kind}", status_code=201)
    def post_payment(
        kind: str, body: NewPayment, session: Annotated[Session, Depends(get_session, scope="function")]
    ) -> Receipt:
        payment = Payment(reference=body.reference, amount=body.amount)
        session.add(payment)
        session.flush()
        return Receipt(id=payment.id, amount=body.amount)

    @router.patch("/payments/{kind}", status_code=204)
    def patch_payment(
        kind: str, body: NewPayment, session: Annotated[Session, Depends(get_session, scope="function")]
    ) -> None: ...

    app = FastAPI()
    app.include_router(router)
    app.include_router(key_router(guard, **options))
    return app


def test_schemathesis_finds_nothing(postgresql):
    engine = create_engine(postgresql.url, pool_size=20)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app_of(sessionmaker(engine)))
    # Hypothesis sends short keys again with other content, which is 422, though each request is valid.
    left_out = [CHECKS.get_one("positive_data_acceptance")]
    seen = set()

    for operation, mode in itertools.product(schema.get_all_operations(), GenerationMode):

        @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(operation.ok().as_strategy(generation_mode=mode))
        def check(case):
            response = case.call()
            seen.add(response.status_code)
            case.validate_response(response, excluded_checks=left_out)

        check()
    engine.dispose()
    assert {200, 201, 204, 400, 422} <= seen, seen
