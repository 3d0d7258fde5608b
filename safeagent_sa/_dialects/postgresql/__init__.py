"""PostgreSQL 13 and newer.

* `protocol` is the claim protocol: which statement is sent when, and what its answer means.
* `statements` are the statements themselves, built once for each table.
* `fast_path` sends a claim with BEGIN and a completion with COMMIT; `pipeline` sends such a batch over psycopg 3, and
  `prepared` keeps the names of prepared statements.
"""
