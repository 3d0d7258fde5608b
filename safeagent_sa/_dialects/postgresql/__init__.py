"""PostgreSQL 13 and newer.

* `probe` finds out which engine this is. `protocol` claims under advisory locks, `by_key` without them; `server` is what both share.
* `statements` and `key_statements` are the SQL, built once for each table; `answers` reads what it returns.
* `ready` sends a statement on the driver's cursor, or through SQLAlchemy where anything listens.
* `fast_path` and `key_fast_path` send a claim with BEGIN and a completion with COMMIT; `pipeline` sends such a batch over psycopg 3,
  and `prepared` keeps the names of prepared statements.
"""
