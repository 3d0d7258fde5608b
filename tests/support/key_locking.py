"""A database in which the public may call no function of advisory locks, and a plain role that owns what it makes there."""

from sqlalchemy import text


ADVISORY = "SELECT oid::regprocedure FROM pg_proc WHERE proname LIKE '%advisory%'"


def create_role_without_advisory_locks(owner, role):
    with owner.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'x'"))
        for function in connection.scalars(text(ADVISORY)).all():
            connection.execute(text(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC"))
        connection.execute(text(f"GRANT ALL ON SCHEMA public TO {role}"))
        connection.execute(text(f"GRANT pg_signal_backend, pg_read_all_stats TO {role}"))
