"""The table among the models of SQLModel, which are pydantic's and show no registry."""

import pytest
from sqlalchemy import MetaData, inspect
from sqlmodel import Session, SQLModel, select

from safeagent_sa import ExecutionGuard, ExecutionRequestMixin, make_model, models, schema


class Own(SQLModel):
    """An app's own base, so that other tests keep their MetaData."""

    metadata = MetaData()


ExecutionRequest = make_model(Own, tablename="sqlmodel_requests")


@pytest.fixture
def engine(port):
    Own.metadata.create_all(port.engine)
    yield port.engine
    Own.metadata.drop_all(port.engine)


@pytest.mark.parametrize("port", ["sqlite", "postgresql"], indirect=True)
def test_a_model_on_its_metadata(engine):
    assert list(Own.metadata.tables) == ["sqlmodel_requests"]
    schema.verify(engine, model=ExecutionRequest)
    indexes = {index["name"] for index in inspect(engine).get_indexes("sqlmodel_requests")}
    assert indexes == {"ix_sqlmodel_requests_open"}

    guard = ExecutionGuard(model=ExecutionRequest)
    replays = []
    for _ in range(2):
        with Session(engine) as session, session.begin():
            with guard.claim(session, "order-1", action="pay") as execution:
                execution.is_replay or execution.complete({"id": 7})
        replays.append((execution.is_replay, execution.result))
    assert replays == [(False, {"id": 7}), (True, {"id": 7})]
    with Session(engine) as session:
        stored = session.exec(select(ExecutionRequest)).one()
        assert (stored.request_id, stored.status) == ("order-1", "completed")


def test_the_default_base_is_the_one_that_its_migrations_look_at():
    try:
        model = make_model(SQLModel)
        assert SQLModel.metadata.tables[models.TABLE_NAME] is model.__table__
    finally:
        SQLModel.metadata.remove(SQLModel.metadata.tables[models.TABLE_NAME])


@pytest.mark.parametrize("bases", [(ExecutionRequestMixin, SQLModel), (SQLModel, ExecutionRequestMixin)])
@pytest.mark.parametrize("options", [{"table": True}, {}])
def test_the_mixin_says_what_to_write(bases, options):
    with pytest.raises(TypeError, match=r"ExecutionRequest = make_model\(SQLModel\)"):
        type(SQLModel)("Requests", bases, {"__module__": __name__}, **options)
