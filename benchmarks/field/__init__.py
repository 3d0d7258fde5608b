"""Compares idempotency libraries: the same races and crashes, run against each one.

    python -m benchmarks.field [--json FILE]

A delivery always does the same business: one row of `payments` on PostgreSQL, written as the library's own documentation
writes business rows. `scenarios` has the faults, `adapters` one small file for each library, `page` the rendering.
"""
