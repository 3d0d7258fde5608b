"""Breaks the protocol on purpose, one way at a time, and shows that the suite notices each: `make mutants`.

With words, only those mutants whose name or file has one of them: `make mutants ARGS="pipeline wait"`.

Every mutant is one replacement in a copy of the package. A mutant that the suite does not catch is a promise without a
test, and makes this script fail; so does a replacement that no longer fits the code.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.servers import start  # noqa: E402


CLAIM, SAFETY = "_claim.py", "_safety.py"
POSTGRESQL, SQLITE, BASE = "_dialects/postgresql.py", "_dialects/sqlite.py", "_dialects/_base.py"
PIPELINE, PIPELINED = "_dialects/psycopg_pipeline.py", "_dialects/_pipelined.py"
PREPARED = "_dialects/psycopg_prepared.py"
SQL, OUTCOME, BATCH = "_dialects/_postgresql_sql.py", "_outcome.py", "_batch.py"
LEASE, ROWS, DOUBT = "_lease.py", "_lease_rows.py", "_doubt.py"
FLOW, RELAY = "_effect_flow.py", "_relay_steps.py"
SUITE = [
    "tests/unit",
    "tests/effects/test_effects.py",
    "tests/effects/test_fence.py",
    "tests/effects/test_costs.py",
    "tests/effects/test_between.py",
    "tests/effects/test_outbox.py",
    "tests/conformance",
    "tests/postgresql",
    "tests/crash/test_connection_loss.py",
]

# name: (file, what stands there, what the mutant has instead)
MUTANTS = {
    "an effect is not marked as started": (
        LEASE,
        'values = {"effect_started_at": now(rows.connection), "lease_expires_at"',
        'values = {"lease_expires_at"',
    ),
    "an outcome is written without the fence": (ROWS, "columns.token == token, ", "columns.token == columns.token, "),
    "a write of an attempt ignores the status": (ROWS, ", columns.status.in_(statuses))", ",)"),
    "a mark is set on what was parked": (
        LEASE,
        "later(rows.connection, terms.seconds)}\n    _own(rows, lease, values, LEASED)",
        "later(rows.connection, terms.seconds)}\n    _own(rows, lease, values, LEASED, IN_DOUBT)",
    ),
    "a lease never ends": (ROWS, "self.seconds_left is None or self.seconds_left <= 0", "False"),
    "a lease has always ended": (ROWS, "self.seconds_left is None or self.seconds_left <= 0", "True"),
    "a takeover trusts its look": (ROWS, "where(*which, is_free)", "where(*which)"),
    "a takeover trusts the end of the lease": (
        ROWS,
        "((columns.status == LEASED) & ended)",
        "(columns.status == LEASED)",
    ),
    "a takeover trusts the status": (ROWS, "((columns.status == LEASED) & ended)", "ended"),
    "a takeover trusts the action": (LEASE, "columns.action == stored.action, ", "columns.action == columns.action, "),
    "a takeover trusts the fingerprint": (LEASE, ", columns.fingerprint == stored.fingerprint)", ",)"),
    "a takeover trusts the key": (LEASE, "rows.take_over(*rows.by_key(key), *same", "rows.take_over(*same"),
    "a park takes over what may have happened": (
        ROWS,
        "is_parked = may_have_happened & parks",
        "is_parked = literal(False)",
    ),
    "a park takes the lease of the attempt away": (
        ROWS,
        "case((is_parked, columns.token), else_=literal(token, columns.token.type))",
        "literal(token, columns.token.type)",
    ),
    "a takeover forgets that it may have happened": (
        ROWS,
        '"effect_started_at": case((may_have_happened, mark), else_=null()),',
        "",
    ),
    "a takeover ignores a conflict": (
        LEASE,
        " and conflict(request, terms.policy.fingerprinter, found.stored) is None",
        "",
    ),
    "a safe error settles what came before": (LEASE, "if not lease.is_in_doubt:", "if True:"),
    "a probe settles nothing": (FLOW, "lease = lease._replace(is_in_doubt=False)", "pass"),
    "what may have happened is a dead letter": (RELAY, "if lease.is_in_doubt:", "if False:"),
    "effects are not made durable": (ROWS, "        if not is_durable:", "        if False:"),
    "a late worker overwrites a recorded outcome": (
        LEASE,
        "lease.token, values, LEASED, IN_DOUBT):",
        'lease.token, values, LEASED, IN_DOUBT, "completed"):',
    ),
    "a resolution keeps the token": (DOUBT, 'values["token"] = uuid.uuid4()', "pass"),
    "a running attempt can be resolved": (DOUBT, "return found.is_started and found.is_expired", "return True"),
    "an unknown error frees the request": (
        FLOW,
        "except self.retry_on as error:",
        "except Exception as error:",
    ),
    "effects are fired in an open transaction": (FLOW, "if _open_here.is_guarded_transaction_open():", "if False:"),
    "a relay takes what is not due": (RELAY, "columns.lease_expires_at <= _clock.began(rows.connection),", ""),
    "a dead letter is tried for ever": (RELAY, "if lease.attempt >= self._max_attempts:", "if False:"),
    "SELECT before INSERT": (
        CLAIM,
        "found = begun.found if begun else dialect.insert_or_find(connection, row)",
        "found = dialect.find(connection, row.scope, row.request_id) or dialect.insert_or_find(connection, row)",
    ),
    "a claim that shows no row is not looked for again": (
        CLAIM,
        "    if found is None and wait_timeout == 0:\n        found = dialect.find(connection, row.scope, row.request_id)",
        "    if found is None and wait_timeout == 0:\n        pass",
    ),
    "a completion sent with the COMMIT accepts no row": (
        SQL,
        "else_=literal_column(f\"'{LOST}'\")",
        "else_=literal_column(\"'1'\")",
    ),
    "a ROLLBACK keeps the completion": (
        PIPELINE,
        "        self._waiting.clear()",
        "        pass",
    ),
    "nobody hears of a DEALLOCATE ALL": (
        PREPARED,
        "            if is_sent:\n                self._there.clear()",
        "            if is_sent:\n                pass",
    ),
    "statements are prepared before BEGIN": (
        PIPELINE,
        "[begin, *prepare, ",
        "[*prepare, begin, ",
    ),
    "BEGIN forgets the isolation level": (PIPELINE, "if driver.isolation_level is not None:", "if False:"),
    "whoever looks before the COMMIT sees no receipt": (CLAIM, "    dialect.send_early(connection)", "    pass"),
    "the completion of a savepoint waits for the COMMIT": (
        SAFETY,
        "return not (in_savepoint or is_joined or self.session.twophase)",
        "return True",
    ),
    "a failed batch leaves its transaction open": (
        PIPELINE,
        "which nobody may commit\n                driver.rollback()",
        "which nobody may commit\n                pass",
    ),
    "what was sent in a savepoint is not sent with the COMMIT": (
        PIPELINE,
        "        for completion in self._waiting:\n            completion.send_early()",
        "        waiting, self._waiting = self._waiting, []\n        for completion in waiting:\n            completion.send_early()",
    ),
    "what a savepoint took back is not seen again": (
        PIPELINED,
        "if self.is_sent and self.savepoint in (None, savepoint):",
        "if self.is_sent:",
    ),
    "what a released savepoint has kept is lost": (
        PIPELINED,
        '(stored.token, stored.status) == (claim.token, "completed")',
        "False",
    ),
    "a COMMIT accepts no row that was completed early": (SQL, "or_(is_one, is_done)", "is_one"),
    "the COMMIT trusts names that it has not met": (PREPARED, " if texts is self._met else None", ""),
    "names are kept that are not there": (
        PREPARED,
        "            self._there.clear()\n            self._may_prepare",
        "            self._may_prepare",
    ),
    "a cancel is not heard": (PIPELINED, "if error.sqlstate in _NOT_AGAIN:", "if False:"),
    "the client's encoding is not looked at": (
        PIPELINE,
        'return "utf-8" if encoding == "ascii" else encoding',
        'return "utf-8"',
    ),
    "the look-up is made although a row was inserted": (
        SQL,
        ', ~exists(select(literal_column("1")).select_from(inserted)))',
        ")",
    ),
    "no row is taken for ours": (
        CLAIM,
        "        raise in_progress(Key(row",
        "        return Inserted('0', is_durable=True)\n        raise in_progress(Key(row",
    ),
    "a conflicting payload is replayed": (OUTCOME, "if not same and not", "if False and not"),
    "a conflicting action is replayed": (OUTCOME, "if stored.action != request.action:", "if False:"),
    "the completion ignores the token": (
        BASE,
        'self._owned = (*self._by_key, columns.token == bindparam("key_token"))',
        "self._owned = (*self._by_key, columns.token.is_not(None))",
    ),
    "the completion ignores the transaction": (SQL, ', proof == bindparam("proof", type_=Text)', ""),
    "the completion ignores the status": (SQL, ", columns.status == literal_column(\"'claimed'\")", ""),
    "the completion's row count is ignored": (
        CLAIM,
        "return dialect.complete(*where, result) == 1",
        "return dialect.complete(*where, result) >= 0",
    ),
    "a batch's row count is ignored": (BATCH, "== len(texts)", ">= 0"),
    "a batch that is not completed is stored": (BATCH, "            if text is None:", "            if False:"),
    "tenants share their locks": (SQL, "_LOCK_SEED + _TableId(table)", "_LOCK_SEED"),
    "a statement_timeout aborts a waiter": (SQL, ')::interval) * 900"', ')::interval) * 5000"'),
    "a row that went away unseen is fine": (
        SAFETY,
        "        if not claim.is_savepoint_gone:\n            raise lost",
        "        if False:\n            raise lost",
    ),
    "a batch ignores the locks": (
        SQL,
        "select(*given).select_from(new).where(free)",
        "select(*given).select_from(new)",
    ),
    "a deadlock is swallowed while waiting": (
        SQL,
        "WHEN SQLSTATE 'SA000' OR lock_not_available THEN",
        "WHEN OTHERS THEN",
    ),
    "a time-out aborts the transaction": (SQL, "'SA000' OR lock_not_available THEN", "'SA000' THEN"),
    "a waiter keeps the lock": (SQL, "  RAISE SQLSTATE 'SA000';\n", ""),
    "a waiter that has lost takes the lock": (
        CLAIM,
        "dialect.find(connection, row.scope, row.request_id) or dialect.insert_or_find(connection, row)\n            waited",
        "dialect.insert_or_find(connection, row)\n            waited",
    ),
    "lock_timeout leaks": (SQL, "  PERFORM set_config('lock_timeout', current_setting", "  PERFORM (current_setting"),
    "a waiter that was overtaken gives up": (
        CLAIM,
        "has_time = dialect.wait(",
        "has_time = not dialect.wait(",
    ),
    "a waiter never gives up": (
        POSTGRESQL,
        "return limit == 0 or time.monotonic() - began < limit / 1000",
        "return True",
    ),
    "no lock: the INSERT waits": (
        SQL,
        "select(*values, *further.values()).where(free)",
        "select(*values, *further.values())",
    ),
    "synchronous_commit is not forced": (CLAIM, "    if not inserted.is_durable:", "    if False:"),
    "a read-only transaction has no name": (POSTGRESQL, "if _sqlstate(error) != _READ_ONLY_TRANSACTION:", "if True:"),
    "AUTOCOMMIT is not looked for": (
        POSTGRESQL,
        'if getattr(connection.connection.dbapi_connection, "autocommit", False):',
        "if False:",
    ),
    "AUTOCOMMIT is not looked for again": (
        CLAIM,
        "if not dialect.is_in_transaction(connection):\n        dialect",
        "if False:\n        dialect",
    ),
    "an AUTOCOMMIT row is left behind": (CLAIM, "dialect.delete(connection, row)", "pass"),
    "SQLite engines are not checked": (SQLITE, "if managed or", "if False and managed or False and"),
    "an aborted transaction may commit": (SAFETY, "if dialect.is_aborted(connection):", "if False:"),
    "the Session's commit is not watched": (SAFETY, 'event.listen(session, "before_commit", _before_commit)', "pass"),
    "the Connection's commit is not watched": (
        SAFETY,
        "event.listen(claim.connection, name, listener)",
        "pass",
    ),
    "savepoint releases are taken for commits": (SAFETY, " and not session.in_nested_transaction():", ":"),
    "an incomplete claim may commit": (SAFETY, 'raise not_completed(claim.row, "this COMMIT was refused")', "pass"),
    "a lost claim lets later writes commit": (SAFETY, "    if claim.is_lost:\n", "    if False:\n"),
    "a claim that went with its savepoint blocks the commit": (
        SAFETY,
        "        if not claim.is_savepoint_gone:\n",
        "        if True:\n",
    ),
    "pending writes are not looked for": ("_other_writes.py", "    if pending:\n", "    if False:\n"),
    "a second database is not looked for at the block's end": (
        CLAIM,
        "        _other_writes.refuse_second_database(session, {connection})\n",
        "",
    ),
    "a second database is not looked for at COMMIT": (
        SAFETY,
        "        _other_writes.refuse_second_database(session, {connection for connection, _ in current.connections()})",
        "        pass",
    ),
    "forgetting to complete is no error": (
        CLAIM,
        "        if result is None:\n            raise",
        "        if False:\n            raise",
    ),
    "an exception in the block discharges the claim": (
        CLAIM,
        "        _safety.abandon(claim.open_claim)",
        "        _safety.discharge(claim.open_claim)",
    ),
    "a transaction that ended in the block is not noticed": (
        CLAIM,
        "    if open_claim.is_same_transaction:",
        "    if True:",
    ),
    "one's own claim is taken for another's": (OUTCOME, "    if is_own:\n", "    if False:\n"),
    "the first caller gets what he gave": (
        "execution.py",
        "return self._decoded(self._stored)\n\n    def _decoded",
        "return result\n\n    def _decoded",
    ),
    "results are not checked for a round trip": ("_codec.py", "if _dump(decode(text)) != text:", "if False:"),
    "typed results are not compared": (
        "_results.py",
        "if _without_order(again) != _without_order(plain) or",
        "if False and",
    ),
    "typed results come back plain": (
        "_results.py",
        'self._adapter.validate_json(f"[{text}]")[0]',
        "_codec.decode(text)",
    ),
    "a purge waits for locked rows": ("retention.py", ".with_for_update(skip_locked=True)", ".with_for_update()"),
    "a purge drops what has not ended": ("retention.py", "columns.status.in_(ended), ", ""),
    "a purge takes the young as well": ("retention.py", "< cutoff)", "< cutoff + self.older_than)"),
    "a purge deletes its tombstones": ("retention.py", "if self.tombstone:", "if False:"),
    "a purge of minutes is not refused": ("retention.py", "and not is_short_allowed", "and False"),
    "ids are normalised": (
        "_keys.py",
        "    return Key(scope, request_id)",
        "    return Key(scope, request_id.lower())",
    ),
    "the scope is ignored": ("_keys.py", "    return Key(scope, request_id)", '    return Key("", request_id)'),
    "40001 is not worth another attempt": (POSTGRESQL, '_TRANSIENT = {"40001", "40P01"', "_TRANSIENT = {"),
    "a lost COMMIT is not run again": ("_retry.py", "worth_it = error.connection_invalidated or", "worth_it ="),
    "attempts are not bounded": ("_retry.py", "or self._left == 0 or", "or"),
}


def main():
    words = sys.argv[1:]
    chosen = {
        name: mutant for name, mutant in MUTANTS.items() if not words or any(word in name + mutant[0] for word in words)
    }
    server = start()
    environment = os.environ | {"SAFEAGENT_TEST_DATABASE_URL": server.url.render_as_string(hide_password=False)}
    survivors = []
    try:
        if not passes(ROOT / "safeagent_sa", environment):
            sys.exit("the suite does not pass on the code as it is; mend that first")
        for number, (name, (file, old, new)) in enumerate(chosen.items(), 1):
            with tempfile.TemporaryDirectory() as folder:
                package = Path(folder) / "safeagent_sa"
                shutil.copytree(ROOT / "safeagent_sa", package)
                source = (package / file).read_text()
                if source.count(old) != 1:
                    sys.exit(f"{name}: its text stands {source.count(old)} times in {file}; update the mutant")
                (package / file).write_text(source.replace(old, new))
                caught = not passes(package, environment)
            print(f"{number:3}/{len(chosen)} {'caught  ' if caught else 'SURVIVED'} {name}", flush=True)
            if not caught:
                survivors.append(name)
    finally:
        server.stop()
    print(f"{len(chosen) - len(survivors)} passed, {len(survivors)} failed")
    sys.exit(1 if survivors else 0)


def passes(package, environment):
    # -P: the working directory, where the package as it is stands too, does not come first
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "auto",
        "--maxprocesses",
        "4",
        "--timeout=60",
        "-p",
        "no:cacheprovider",
        *SUITE,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"PYTHONPATH": str(package.parent)}, capture_output=True, check=False
    )
    return done.returncode == 0


if __name__ == "__main__":
    main()
