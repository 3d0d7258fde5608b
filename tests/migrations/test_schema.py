"""The schema steps: frozen, callable from any revision, equal to the models; and the check at the start of an app."""

import hashlib
import io
import uuid
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import MetaData, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column
from sqlalchemy.schema import CreateSchema

from safeagent_sa import (
    ExecutionGuard,
    ExecutionRequest,
    ExecutionRequestMixin,
    SchemaError,
    make_model,
    metadata,
    schema,
)
from safeagent_sa.events import Claimed, Completed, Replayed


ROOT = Path(__file__).resolve().parents[2]

# A released step never changes, because databases were made with it. A change is a new step.
RELEASED = {
    "_names.py": "1bb5e4861457395d753576eb7f4cabdbaa88afba35aa1cd63e5d8cb867da01d9",
    "_commit_check.py": "91bc0954fe7c81a463870833ddee8c36521f8818a0236bf191c6c83c2f1341c1",
    "_v0001.py": "1ae4dd4494131b8f777a690467c8588f3a3f94f8f8a82e8f3f6f7bd759071664",
    "_safeagent_stores.py": "c4e3104c12fc6526b8a9baabec97ad2d4bfd98430782e68daf5114041081fad0",
    "_distribution.py": "753008567b17b043fc91b4da6f651346a339e24f925fdaf10607d8872cefacf1",
    "_partitions.py": "ed301f7f0655576ab9870031abbfd3a6130497a057168b916d1ce0164671786a",
    "_adoption.py": "34b4eb73cc75664e71ddb78d37ba888fd9bd9e3e5e68368bd7183732a74856f4",
}

CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


@pytest.fixture
def engine(empty_url):
    found = create_engine(empty_url)
    yield found
    found.dispose()


def operations(connection, **options):
    return Operations(MigrationContext.configure(connection, opts=options))


def upgrade(engine, **options):
    with engine.begin() as connection:
        schema.upgrade(operations(connection), **options)


def differences(engine, target):
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_server_default": True, "compare_type": True, "include_schemas": False}
        )
        return compare_metadata(context, target)


def test_released_steps_are_frozen():
    folder = ROOT / "safeagent_sa" / "schema"
    steps = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("_*.py")
        if path.name != "__init__.py"
    }

    assert steps == RELEASED


def test_the_steps_create_the_table_of_the_model(engine):
    upgrade(engine)
    assert differences(engine, metadata) == []

    with engine.begin() as connection:
        schema.downgrade(operations(connection))
    assert inspect(engine).get_table_names() == []


def test_a_naming_convention_of_the_app_renames_nothing(engine):
    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention=CONVENTION)

    class Requests(ExecutionRequestMixin, Base):
        pass

    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"target_metadata": Base.metadata})
        schema.upgrade(Operations(context))
    by_step = names(engine)
    assert differences(engine, Base.metadata) == []
    with engine.begin() as connection:
        schema.downgrade(operations(connection))
        Base.metadata.create_all(connection)

    assert names(engine) == by_step
    assert "ck_execution_requests_status" in by_step
    assert "pk_execution_requests" in by_step


def names(engine):
    inspector = inspect(engine)
    checks = {check["name"] for check in inspector.get_check_constraints("execution_requests")}
    return checks | {inspector.get_pk_constraint("execution_requests")["name"]}


def test_the_table_may_have_another_name(engine):
    class Base(DeclarativeBase):
        pass

    make_model(Base, tablename="trade_requests")
    upgrade(engine, table_name="trade_requests")

    assert differences(engine, Base.metadata) == []
    with engine.begin() as connection:
        schema.downgrade(operations(connection), table_name="trade_requests")
    assert inspect(engine).get_table_names() == []


def test_the_table_may_be_in_another_schema(new_database):
    class Base(DeclarativeBase):
        pass

    model = make_model(Base, schema="trading")
    engine = create_engine(new_database())
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA trading"))
    upgrade(engine, schema="trading")
    schema.verify(engine, model=model)
    with pytest.raises(SchemaError, match="execution_requests does not exist"):
        schema.verify(engine)
    with engine.connect() as connection:
        options = connection.scalar(text("SELECT reloptions FROM pg_class WHERE relname = 'execution_requests'"))
    engine.dispose()

    assert options == ["fillfactor=80"]


def test_a_model_works_on_a_dataclass_base():
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)

    model = make_model(Base)

    assert Base.metadata.tables["execution_requests"] is model.__table__
    assert Order(id=1).id == 1


@pytest.mark.parametrize("tablename", ["", "x" * 41])
def test_table_names_that_make_bad_constraint_names_are_refused(tablename):
    class Base(DeclarativeBase):
        pass

    with pytest.raises(ValueError, match="40 characters"):
        make_model(Base, tablename=tablename)


def test_the_sql_of_each_step_is_pinned():
    for dialect in ("postgresql", "sqlite"):
        output = io.StringIO()
        context = MigrationContext.configure(
            dialect_name=dialect, opts={"as_sql": True, "output_buffer": output, "literal_binds": True}
        )
        for step in range(schema.LATEST):
            schema.upgrade(Operations(context), from_=step, to=step + 1)
            expected = (Path(__file__).parent / "sql" / f"step{step + 1}_{dialect}.sql").read_text()
            assert output.getvalue().strip() == expected.strip()


@pytest.mark.parametrize(("from_", "to"), [(1, 0), (0, schema.LATEST + 1), (-1, 0)])
def test_steps_out_of_order_are_refused(from_, to):
    with pytest.raises(ValueError, match="from_"):
        schema.upgrade(None, from_=from_, to=to)
    with pytest.raises(ValueError, match="from_"):
        schema.downgrade(None, from_=to, to=from_)


GOOD = {"request_id": "a", "action": "pay", "fingerprint": "f"}


@pytest.mark.parametrize(
    "bad",
    [
        {"status": "unknown"},
        {"request_id": ""},
        {"status": "completed", "result": None},
        {"status": "leased"},
        {"status": "in_doubt"},
        {"request_id": None},
        {"scope": None},
    ],
)
def test_the_table_itself_refuses_what_must_not_be(engine, bad):
    upgrade(engine)
    with engine.connect() as connection:
        insert = ExecutionRequest.__table__.insert()
        values = GOOD | {"token": uuid.uuid4()}
        connection.execute(insert, values)
        connection.rollback()
        with pytest.raises(IntegrityError):
            connection.execute(insert, values | bad)


def test_verify_passes_on_our_table_and_has_lines_to_paste_if_there_is_none(engine):
    with pytest.raises(SchemaError) as caught:
        schema.verify(engine)
    assert (caught.value.found, caught.value.needed) == (0, schema.LATEST)
    assert f"safeagent.upgrade(op, from_=0, to={schema.LATEST})" in str(caught.value)
    assert "alembic upgrade head" in str(caught.value)

    upgrade(engine)
    schema.verify(engine)
    with engine.connect() as connection:
        schema.verify(connection)


def test_verify_names_the_table_and_schema_in_the_lines_to_paste(engine):
    class Base(DeclarativeBase):
        pass

    with pytest.raises(SchemaError) as caught:
        schema.verify(engine, model=make_model(Base, tablename="trade_requests"))
    assert "table_name='trade_requests'" in str(caught.value)


def test_verify_recognises_a_table_of_another_library(engine):
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE execution_requests (request_id text primary key, action text)"))
    with pytest.raises(SchemaError, match="another library") as caught:
        schema.verify(engine)
    assert caught.value.found is None
    assert "fingerprint" in str(caught.value)


@pytest.mark.parametrize("name", ["100%", "%(x)s", "%(request_id)s", "$1", "a:b", 'quo"ted', "%%"])
def test_a_schema_may_have_any_name(new_database, name):
    """SQL as text, and statements with numbered parameters, give a percent sign, a colon and a dollar a meaning."""

    class Base(DeclarativeBase):
        pass

    model = make_model(Base, schema=name)
    engine = create_engine(new_database())
    with engine.begin() as connection:
        connection.execute(CreateSchema(name))
        schema.upgrade(operations(connection), schema=name)
        schema.add_commit_check(operations(connection), schema=name)
    schema.verify(engine, model=model)
    seen = []
    for pipeline in ("off", "auto"):
        guard = ExecutionGuard(model=model, pipeline=pipeline, listeners=[seen.append])
        for is_replay in (False, True):
            with Session(engine) as session, session.begin():
                execution = guard.execute(session, f"order-{pipeline}", lambda _: "done", action="pay")
                assert execution.is_replay is is_replay
    paths = [event.is_pipelined for event in seen if isinstance(event, (Claimed, Completed, Replayed))]
    assert paths == [False] * 3 + [True] * 3
    with engine.begin() as connection:
        fillfactor = "SELECT reloptions FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
        where = "relname = 'execution_requests' AND nspname = :name"
        assert connection.scalar(text(f"{fillfactor} WHERE {where}"), {"name": name}) == ["fillfactor=80"]
        schema.drop_commit_check(operations(connection), schema=name)
        schema.downgrade(operations(connection), schema=name)
        assert inspect(connection).get_table_names(schema=name) == []
    engine.dispose()
