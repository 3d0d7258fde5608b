"""The field's correctness table: the same races and crashes run against each idempotency library that we could find.

    python -m benchmarks.field [--json FILE]

A delivery is always the same business: one row of `payments` on PostgreSQL, written as the library's own documentation
writes business rows. `scenarios` has the faults, `adapters` one small file for each library, `page` the rendering.
"""
