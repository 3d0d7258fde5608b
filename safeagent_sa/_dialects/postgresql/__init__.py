"""PostgreSQL 13 and newer.

* `protocol` is the claim protocol: which statement is sent when, and what its answer means.
* `statements` are the statements themselves, built once for each table.
* `fast_path` lets a claim travel with BEGIN and a completion with COMMIT; `pipeline` sends such a batch, in psycopg's own
  terms, and `prepared` keeps the names of prepared statements.
"""
