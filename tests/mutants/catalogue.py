"""The mutants: each breaks one promise, and names the tests that must fail."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One replacement in the package."""

    file: str
    old: str
    """The text to replace, which occurs once in the file."""
    new: str
    tests: str
    """The names of the tests, or of their modules, that run first."""


ACQUIRE, BLOCK, COMPLETE = "_claim/acquire.py", "_claim/block.py", "_claim/complete.py"
BATCH, EACH, OUTCOME = "_claim/batch.py", "_claim/each.py", "_claim/outcome.py"
GUARD, GUARDED = "_transaction/commit_guard.py", "_transaction/guarded_transaction.py"
OPEN, WATCH = "_transaction/open_claim.py", "_transaction/session_watch.py"
REFUSING = "_transaction/refusal_completion.py"
SAVEPOINTS, RUN = "_transaction/savepoints.py", "_transaction/run.py"
BASE, STEPS, SQLITE = "_dialects/base.py", "_dialects/steps.py", "_dialects/sqlite.py"
DRIVERS = "_dialects/drivers.py"
POSTGRESQL, SQL = "_dialects/postgresql/protocol.py", "_dialects/postgresql/statements.py"
SERVER, PROBE = "_dialects/postgresql/server.py", "_dialects/postgresql/probe.py"
BY_KEY, KEY_SQL = "_dialects/postgresql/by_key.py", "_dialects/postgresql/key_statements.py"
KEY_PATH, DIALECTS = "_dialects/postgresql/key_fast_path.py", "_dialects/__init__.py"
FAST_PATH, PIPELINE = "_dialects/postgresql/fast_path.py", "_dialects/postgresql/pipeline.py"
PREPARED, SETTINGS = "_dialects/postgresql/prepared.py", "_settings.py"
ANSWERS, READY = "_dialects/postgresql/answers.py", "_dialects/postgresql/ready.py"
LEASE, ROWS = "_effects/lease.py", "_effects/lease_rows.py"
DOUBT, FLOW, RELAY = "_effects/doubt.py", "_effects/flow.py", "_effects/relaying.py"
IDS, JSON_TEXT, RESULTS = "_request/ids.py", "_request/json_text.py", "_request/results.py"
OWN_RESULTS = "_request/own_results.py"
SIGNATURE, ARGUMENTS, TEMPLATE = "_request/signature.py", "_request/arguments.py", "_request/template.py"
MESSAGES, TASKS = "integrations/messages.py", "integrations/_queue_tasks.py"
HTTP, ASGI = "integrations/http.py", "integrations/_asgi_responses.py"
FASTAPI, FASTAPI_BLOCK = "integrations/fastapi.py", "integrations/_fastapi_block.py"
WEBHOOKS, PROVIDERS = "integrations/webhooks.py", "integrations/_webhook_providers.py"
RETENTION, EXECUTION = "retention.py", "execution.py"

CLAIMING = {
    "SELECT before INSERT": Mutant(
        ACQUIRE,
        "found = begun.found if begun else protocol.insert_or_find(connection, row)",
        "found = protocol.find(connection, row.scope, row.request_id) or protocol.insert(connection, row)",
        "test_a_new_claim_takes_no_predicate_lock test_a_new_execution_adds_two_statements",
    ),
    "a claim that shows no row is not looked for again": Mutant(
        ACQUIRE,
        "    if wait_timeout == 0:\n        found = protocol.find(connection, row.scope, row.request_id)",
        "    if wait_timeout == 0:\n        pass",
        "test_fail_fast_is_two_statements",
    ),
    "the look-up is made although a row was inserted": Mutant(
        SQL,
        ', ~exists(select(literal_column("1")).select_from(inserted)))',
        ")",
        "test_a_new_claim_takes_no_predicate_lock",
    ),
    "no row is taken for ours": Mutant(
        ACQUIRE,
        "        raise in_progress(Key(row",
        "        return Inserted('0', is_durable=True)\n        raise in_progress(Key(row",
        "test_fail_fast_leaves_the_transaction_usable",
    ),
    "a conflicting payload is replayed": Mutant(
        OUTCOME,
        "if not same and not",
        "if False and not",
        "test_another_action_or_payload_under_the_same_id_is_a_conflict",
    ),
    "a conflicting action is replayed": Mutant(
        OUTCOME,
        "if stored.action != request.action:",
        "if False:",
        "test_another_action_or_payload_under_the_same_id_is_a_conflict",
    ),
    "one's own claim is taken for another's": Mutant(
        OUTCOME,
        "    if own is not None:\n",
        "    if False:\n",
        "test_claiming_the_same_id_inside_its_own_block_is_refused",
    ),
    "tenants share their locks": Mutant(
        SQL, "_LOCK_SEED + _TableId(table)", "_LOCK_SEED", "test_tenants_with_a_schema_each_do_not_meet"
    ),
    "no lock: the INSERT waits": Mutant(
        SQL,
        "select(*self._values, *further.values()).where(self._is_free)",
        "select(*self._values, *further.values())",
        "test_waiting.py",
    ),
    "a read-only transaction has no name": Mutant(
        SERVER,
        "if sqlstate_of(error) == _READ_ONLY_TRANSACTION:",
        "if False:",
        "test_a_read_only_transaction_is_refused_by_name",
    ),
    "AUTOCOMMIT is not looked for": Mutant(
        SERVER,
        'if getattr(connection.connection.dbapi_connection, "autocommit", False):',
        "if False:",
        "test_autocommit_is_refused_in_all_its_forms_and_leaves_no_row",
    ),
    "AUTOCOMMIT is not looked for again": Mutant(
        ACQUIRE,
        "if transaction_state(connection) is TransactionState.NONE:\n        for",
        "if False:\n        for",
        "test_autocommit_that_comes_after_the_look_is_found_and_the_row_taken_back",
    ),
    "an AUTOCOMMIT row is left behind": Mutant(
        ACQUIRE,
        "protocol.delete(connection, each)",
        "pass",
        "test_autocommit_that_comes_after_the_look_is_found_and_the_row_taken_back",
    ),
    "SQLite engines are not checked": Mutant(
        SQLITE, "if managed or", "if False and managed or False and", "test_an_engine_that_is_not_configured_is_refused"
    ),
    "the next session of a registry may commit": Mutant(
        "_transaction/given_session.py",
        "if found is None or found is session else (session, found)",
        "if True else (session, found)",
        "test_what_the_next_session_of_a_registry_writes_in_the_block_does_not_commit",
    ),
    "pending writes are not looked for": Mutant(
        WATCH, "    if pending:\n", "    if False:\n", "test_changes_that_a_replay_would_write_are_refused"
    ),
}

WAITING = {
    "a statement_timeout aborts a waiter": Mutant(
        SQL, ')::interval) * 900"', ')::interval) * 5000"', "test_a_statement_timeout_bounds_the_wait_without_aborting"
    ),
    "a deadlock is swallowed while waiting": Mutant(
        SQL,
        "WHEN SQLSTATE 'SA000' OR lock_not_available THEN",
        "WHEN OTHERS THEN",
        "test_a_deadlock_between_waiters_is_not_swallowed test_a_foreign_error_while_waiting_is_not_swallowed",
    ),
    "a time-out aborts the transaction": Mutant(
        SQL,
        "'SA000' OR lock_not_available THEN",
        "'SA000' THEN",
        "test_a_timeout_leaves_the_transaction_usable_and_its_settings_alone",
    ),
    "a waiter keeps the lock": Mutant(
        SQL,
        "  RAISE SQLSTATE 'SA000';\n",
        "",
        "test_the_lock_is_handed_on_without_the_waiters_clients test_a_waiter_that_lost_gives_the_lock_back_at_once",
    ),
    "a waiter that has lost takes the lock": Mutant(
        POSTGRESQL,
        "            found = found or self.insert_or_find(connection, claim)\n",
        "            found = self.insert_or_find(connection, claim)\n",
        "test_a_waiter_that_lost_gives_the_lock_back_at_once",
    ),
    "lock_timeout leaks": Mutant(
        SQL,
        "  PERFORM set_config('lock_timeout', current_setting",
        "  PERFORM (current_setting",
        "test_a_waiter_that_wins_keeps_its_lock_timeout",
    ),
    "a waiter that was overtaken gives up": Mutant(
        POSTGRESQL,
        "        return limit == 0 or time.monotonic() - began < limit / 1000, there",
        "        return False, there",
        "test_a_waiter_that_was_overtaken_waits_again",
    ),
    "the limit of a wait is a number of the driver's": Mutant(
        SQL,
        'return shown.label("limit_ms"), caller,',
        'return cast(shown, BigInteger).label("limit_ms"), caller,',
        "test_a_wait_reads_no_number_that_an_app_may_load_in_its_way",
    ),
    "a waiter of a pipelined guard looks before it waits": Mutant(
        FAST_PATH,
        "(self._statements.prepare_wait, WAIT, self._statements.look)",
        "(self._statements.prepare_wait, self._statements.look, WAIT)",
        "test_a_pipelined_waiter_costs_one_round_trip",
    ),
    "a waiter never gives up": Mutant(
        POSTGRESQL,
        "return limit == 0 or time.monotonic() - began < limit / 1000, there",
        "return True, there",
        "test_a_wait_that_has_taken_its_time_is_the_last_one",
    ),
}

COMPLETING = {
    "no completion is sent in front of COMMIT": Mutant(
        GUARDED,
        "                if with_commit is None:\n                    claim.write(connection)",
        "                if with_commit is None:\n                    pass",
        "test_the_first_call_executes_and_a_retry_gets_the_receipt",
    ),
    "no completion goes with the COMMIT": Mutant(
        GUARDED,
        "                travelling.append(with_commit)",
        "                pass",
        "test_the_first_call_executes_and_a_retry_gets_the_receipt",
    ),
    "a completion that was lost is no error": Mutant(
        OPEN,
        "            raise\n        raise lost(self)\n",
        "            raise\n",
        "test_a_rollback_of_the_driver_behind_the_block",
    ),
    "the completion's row count is ignored": Mutant(
        OPEN,
        "self.result, is_forced=self.is_forced) == 1",
        "self.result, is_forced=self.is_forced) >= 0",
        "test_a_rollback_of_the_driver_behind_the_block",
    ),
    "a batch's row count is ignored": Mutant(
        OPEN,
        "is_forced=self.is_forced)\n        return count == len(self.results)",
        "is_forced=self.is_forced)\n        return True",
        "test_a_receipt_of_another_transaction_covers_nothing",
    ),
    "a completion that goes with the COMMIT accepts no row": Mutant(
        SQL,
        "else_=constant(LOST)",
        "else_=constant('1')",
        "test_a_rollback_of_the_driver_behind_the_block",
    ),
    "a COMMIT accepts no row that was completed early": Mutant(
        SQL, "or_(is_one, is_done)", "is_one", "test_a_read_before_the_commit_sees_the_receipt"
    ),
    "the completion ignores the token": Mutant(
        BASE,
        'self._owned = (*self._by_key, columns.token == bindparam("key_token"))',
        "self._owned = (*self._by_key, columns.token.is_not(None))",
        "test_a_row_of_another_claim_is_not_completed",
    ),
    "a batch's completion ignores the token": Mutant(
        SQL,
        '            columns.token == bindparam("key_token"),\n',
        "",
        "test_a_row_of_another_claim_is_not_completed",
    ),
    "the completion ignores the transaction": Mutant(
        SQL,
        'is_same = bindparam("proof", type_=Text) == _PROOF',
        "is_same = true()",
        "test_a_commit_of_the_driver_inside_the_block_is_found_by_the_completion test_a_commit_of_the_driver_behind_the_block_leaves_the_id_in_doubt",
    ),
    "the completion ignores the status": Mutant(
        SQL,
        "table.c.status == constant(ExecutionStatus.CLAIMED), *made_durable",
        "*made_durable",
        "test_a_stored_result_is_never_overwritten",
    ),
    "the completion ignores the status on SQLite": Mutant(
        SQLITE,
        ".where(*self._owned, columns.status == constant(ExecutionStatus.CLAIMED))",
        ".where(*self._owned)",
        "test_a_stored_result_is_never_overwritten",
    ),
    "an early completion is not sent": Mutant(
        GUARDED,
        "        claim.write(connection)\n        claim.is_written_early = True",
        "        claim.is_written_early = True",
        "test_a_read_before_the_commit_sees_the_receipt test_a_retry_in_the_same_transaction_is_a_replay_too",
    ),
    "a look before the COMMIT sees no receipt": Mutant(
        ACQUIRE,
        "    if write_pending(connection, (found.token,)):",
        "    if False:",
        "test_a_retry_in_the_same_transaction_is_a_replay_too",
    ),
    "a batch before the COMMIT sees no receipt": Mutant(
        BATCH,
        "if write_pending(connection, {row.token for row in stored.values()}):",
        "if False:",
        "test_a_batch_replays_what_this_transaction_has_executed",
    ),
    "an early completion is not proved again": Mutant(
        OPEN,
        "if self.is_written_early and completion.is_written(connection):",
        "if self.is_written_early:",
        "test_a_savepoint_as_text_behind_the_block_is_no_harm",
    ),
    "an early completion is sent again in any case": Mutant(
        OPEN,
        "if self.is_written_early and completion.is_written(connection):",
        "if False:",
        "test_a_retry_in_the_same_transaction_is_a_replay_too",
    ),
    "an early completion is proved without the transaction": Mutant(
        POSTGRESQL,
        "    is_same = IS_SAME\n",
        "",
        "test_a_receipt_of_another_transaction_covers_nothing",
    ),
    "an early completion that goes with the COMMIT is proved without the transaction": Mutant(
        SQL,
        "is_status, is_same)",
        "is_status)",
        "test_a_receipt_of_another_transaction_covers_nothing",
    ),
    "a batch's early completion is proved without the transaction": Mutant(
        BASE,
        "return len(done) if self.is_same_transaction(connection, proof) else 0",
        "return len(done)",
        "test_a_receipt_of_another_transaction_covers_nothing",
    ),
    "a batch's early completion is proved by any row": Mutant(
        BASE,
        "if row.token == claims.token and row.status in ANSWERED]",
        "if row]",
        "test_a_savepoint_as_text_behind_the_block_is_no_harm test_savepoints_as_text_are_followed",
    ),
    "a joined session completes nothing at its own commit": Mutant(
        WATCH,
        "            write_pending(connection, list(held.claims))\n",
        "",
        "test_a_session_in_an_outer_transaction_completes_at_its_own_commit test_sessions_joined_to_an_outer_transaction_of_a_test_suite_work",
    ),
    "synchronous_commit is not forced": Mutant(
        SQL,
        "if is_durable else ()",
        "if False else ()",
        "test_a_commit_that_could_be_lost_is_made_durable_for_this_transaction_alone",
    ),
    "synchronous_commit local is durable": Mutant(
        ANSWERS,
        'LOSABLE = {"off", "local"}',
        'LOSABLE = {"off"}',
        "test_a_commit_that_could_be_lost_is_made_durable_for_this_transaction_alone",
    ),
    "synchronous_commit is forced where it was only to be warned of": Mutant(
        OPEN,
        "self.result, is_forced=self.is_forced)",
        "self.result, is_forced=True)",
        "test_or_it_is_warned_about_once",
    ),
    "a batch's synchronous_commit is forced where it was only to be warned of": Mutant(
        OPEN,
        "self.results, is_forced=self.is_forced",
        "self.results, is_forced=True",
        "test_or_it_is_warned_about_once",
    ),
    "a batch's synchronous_commit is not forced": Mutant(
        OPEN,
        "self.results, is_forced=self.is_forced",
        "self.results, is_forced=False",
        "test_a_batch_is_made_durable_as_well",
    ),
    "synchronous_commit is not warned of": Mutant(
        ACQUIRE, "if not (inserted.is_durable or settings.is_forced):", "if False:", "test_or_it_is_warned_about_once"
    ),
    "a stronger synchronous_commit is weakened": Mutant(
        SQL,
        "case((and_(is_forced, is_losable), turned_on)",
        "case((is_forced, turned_on)",
        "test_what_is_durable_is_left_as_it_is",
    ),
    "forgetting to complete is no error": Mutant(
        COMPLETE,
        "        if result is None:\n            raise",
        "        if False:\n            raise",
        "test_a_block_that_forgets_to_complete_is_an_error",
    ),
    "a batch that is not completed is stored": Mutant(
        BATCH,
        "            if text is None:",
        "            if False:",
        "test_one_that_is_not_completed_is_an_error_and_commit_is_refused",
    ),
    "an exception in the block discharges the claim": Mutant(
        COMPLETE,
        "    if claim.open_claim is not None:\n        session_watch.abandon(claim.open_claim)",
        "    if claim.open_claim is not None:\n        pass",
        "test_an_exception_after_that_savepoint_does_not_let_later_writes_commit test_rollback_inside_the_block_and_nothing_after_it_leaves_the_session_free",
    ),
    "an exception in the block does not tell that the claim was lost": Mutant(
        WATCH,
        "session.is_active and not claim.is_same_transaction:\n        lose(claim)",
        "session.is_active and not claim.is_same_transaction:\n        pass",
        "test_an_exception_after_that_savepoint_does_not_let_later_writes_commit",
    ),
    "a savepoint that took the claim back in the block is not noticed": Mutant(
        COMPLETE,
        "is_gone = open_claim.is_undone or open_claim.is_lost",
        "is_gone = open_claim.is_lost",
        "test_a_rollback_to_a_savepoint_as_text_in_the_last_flush_of_the_block_loses_the_claim",
    ),
    "a COMMIT in the block passes where a savepoint has taken the claim back": Mutant(
        GUARDED,
        "if claim.is_lost or (claim.is_undone and claim.audience.block is not None):",
        "if claim.is_lost:",
        "test_a_commit_in_the_block_after_its_savepoint_was_rolled_back_is_refused",
    ),
    "a joined session may not commit in the block": Mutant(
        GUARDED,
        "not (may_be_open and claim.audience.block is not None)",
        "True",
        "test_a_commit_in_the_block_is_stored_with_the_receipt_by_the_outer_commit",
    ),
    "a session that works in a savepoint is taken for the owner of its transaction": Mutant(
        WATCH,
        "is_joined = not is_owner or transaction is not held.transaction_ref()",
        "is_joined = not is_owner",
        "test_a_commit_in_the_block_is_stored_with_the_receipt_by_the_outer_commit",
    ),
    "a joined session that commits in the block loses the claim": Mutant(
        WATCH,
        "                    claim.root_ref = None",
        "                    pass",
        "test_a_commit_in_the_block_is_stored_with_the_receipt_by_the_outer_commit",
    ),
    "a block that a joined session has committed in keeps its result to itself": Mutant(
        WATCH,
        "if claim.root_ref is None:  # its session",
        "if False:  # its session",
        "test_reads_in_the_outer_transaction_see_the_receipt_after_the_block",
    ),
    "a second database is not watched after a commit in the block": Mutant(
        WATCH,
        "elif claim.root_ref is None:",
        "elif False:",
        "test_a_second_database_is_refused_after_a_commit_in_the_block",
    ),
    "business writes wait for the COMMIT": Mutant(
        COMPLETE,
        "        session.flush()\n        held",
        "        held",
        "test_business_writes_are_flushed_when_the_block_ends_and_fail_there",
    ),
    "the first caller gets what was given": Mutant(
        EXECUTION,
        'return cast("ResultT", decoded)',
        "return result",
        "test_complete_takes_and_gives_the_type test_values.py test_changing_a_result_changes_nothing_for_others test_the_first_answer_is_what_the_replay_gives",
    ),
    "half of a refusal is taken for the whole": Mutant(
        REFUSING,
        "return all(row.status == ExecutionStatus.REFUSED for row in stored.values())",
        "return True",
        "test_a_refusal_that_stops_half_way_is_not_committed_as_a_result",
    ),
    "a result of an own type need not come back equal": Mutant(
        OWN_RESULTS,
        " and _is_equal(decoded, value, self._kind)",
        "",
        "test_a_result_that_only_looks_equal_in_its_text_is_refused",
    ),
    "a result of an own type need not be of its type": Mutant(
        OWN_RESULTS,
        "type(decoded) is type(value) and",
        "True and",
        "test_a_result_that_comes_back_as_another_type_is_refused",
    ),
    "a result of an own type may have another text the second time": Mutant(
        OWN_RESULTS,
        "is_same and self._has_text(decoded, text, max_bytes)",
        "is_same",
        "test_a_result_that_is_equal_but_has_another_text_is_refused",
    ),
    "a forgotten migration is a bare error": Mutant(
        ACQUIRE,
        "        advise(error, protocol, settings.table)\n",
        "",
        "test_a_forgotten_migration_has_the_lines_to_paste test_so_has_a_claim_that_went_with_begin",
    ),
    "a note is for every table": Mutant(
        "_claim/advice.py",
        "table.name not in str(error.orig)",
        "False",
        "test_a_missing_table_of_a_trigger_has_no_note",
    ),
    "a claim after a failed block is taken for a second one": Mutant(
        WATCH,
        "claim.completion, claim.audience.is_failed = None, True",
        "claim.completion = None",
        "test_a_claim_after_a_failed_block_says_that_it_was_not_rolled_back",
    ),
    "an error in place of a COMMIT's answer is not settled": Mutant(
        RUN,
        "is_unanswered = self.is_committing and may_have_committed(error)",
        "is_unanswered = False",
        "test_an_error_in_place_of_the_answer_of_a_commit_is_settled",
    ),
    "a server that cannot be reached is the caller's": Mutant(
        RUN,
        "worth_it = is_unreachable(error)",
        "worth_it = False",
        "test_a_server_that_cannot_be_reached_is_tried_again",
    ),
    "the time without a server uses attempts up": Mutant(
        RUN,
        "counts = self._is_connected or self._counts_all",
        "counts = True",
        "test_a_server_that_cannot_be_reached_is_tried_again",
    ),
    "without a limit of time a server is waited for for ever": Mutant(
        RUN,
        "counts = self._is_connected or self._counts_all",
        "counts = self._is_connected",
        "test_attempts_to_reach_a_server_are_bounded",
    ),
    "the system's errors of connecting are the caller's": Mutant(
        SERVER,
        "isinstance(error, OSError) or",
        "False or",
        "test_a_server_that_cannot_be_reached_is_tried_again",
    ),
    "a relay ends where asyncpg cannot connect": Mutant(
        "relay.py",
        "if not (isinstance(error, DBAPIError) or is_unreachable(error)):",
        "if not isinstance(error, DBAPIError):",
        "test_a_relay_waits_for_a_server_that_cannot_be_reached",
    ),
    "an error of the function is taken for one of connecting": Mutant(
        RUN,
        "if not self._is_connected:",
        "if True:",
        "test_such_an_error_of_the_function_is_not_one_of_connecting",
    ),
    "every error of a COMMIT is tried again": Mutant(
        DIALECTS,
        "return not is_answer and all(",
        "return all(",
        "test_a_constraint_that_fails_at_the_commit_is_not_tried_again",
    ),
    "an outdated plan is the caller's": Mutant(
        SERVER,
        " or _is_old_plan(error)",
        "",
        "test_run_transaction_runs_again_where_a_column_has_another_type_by_now",
    ),
    "every unsupported feature is tried again": Mutant(
        SERVER,
        '"source_function", None) == _OLD_PLAN',
        '"source_function", None) != 1',
        "test_another_feature_that_is_not_supported_is_not_tried_again",
    ),
    "a block is shown after its end": Mutant(
        BLOCK,
        "OPEN.set(self._shown_before)",
        "pass",
        "test_an_inner_block_hides_the_outer_one_until_it_ends_even_by_an_exception",
    ),
    "a block that was dropped is shown": Mutant(
        BLOCK,
        "OPEN.set(ref(self))",
        "OPEN.set(lambda: self)",
        "test_a_block_that_is_dropped_or_ends_in_another_context_names_nothing_here",
    ),
    "a block of a batch is shown after its end": Mutant(
        "_claim/each.py",
        "OPEN.set(shown_before)",
        "pass",
        "test_after_a_message_of_a_batch_the_outer_block_is_named_again",
    ),
    "a replay names itself as its original": Mutant(
        ACQUIRE,
        "        audience.replayed(stored.token)\n",
        "        audience.replayed(audience.rows[0].token)\n",
        "test_a_new_execution_and_its_replay test_opentelemetry",
    ),
    "a refusal is stored as a result": Mutant(
        COMPLETE, "        if is_refused:\n", "        if False:\n", "test_refusal.py"
    ),
    "a refusal of a batch is stored as a result": Mutant(
        BATCH,
        "        if refused:\n",
        "        if False:\n",
        "test_so_is_one_of_a_batch test_a_batch_stores_results_refusals_and_effects_together",
    ),
    "a refusal travels with the COMMIT as a result": Mutant(
        REFUSING,
        '"""Return None: separate statements write a refusal."""',
        "return self.completion.with_commit(connection, on_lost)",
        "test_a_refusal_is_stored_with_its_rows_and_is_the_answer_of_every_retry",
    ),
    "a refusal that was written early is not found again": Mutant(
        EXECUTION,
        "ANSWERED = (ExecutionStatus.COMPLETED, ExecutionStatus.REFUSED)",
        "ANSWERED = (ExecutionStatus.COMPLETED,)",
        "test_a_refusal_is_there_for_reads_of_its_own_transaction",
    ),
    "a refusal undoes the rows of its function": Mutant(
        "guard.py",
        "                except Refusal as refusal:\n",
        "                except ZeroDivisionError as refusal:\n",
        "test_a_refusal_is_stored_with_its_rows_and_is_the_answer_of_every_retry",
    ),
    "a refusal is returned and not raised after the COMMIT": Mutant(
        EXECUTION,
        "        if self._is_refused:\n            raise self._refusal()\n        return self\n",
        "        return self\n",
        "test_a_refusal_is_stored_with_its_rows_and_is_the_answer_of_every_retry "
        "test_run_transaction_raises_a_new_refusal_once_it_is_committed",
    ),
}

LAST_WORD = {
    "another transaction of the session of a lost claim may commit": Mutant(
        GUARDED,
        "        for claim in self.claims:\n            if claim.is_lost or (",
        "        for claim in self.claims:\n            if (",
        "test_an_exception_after_a_rollback_inside_the_block_does_not_let_later_writes_commit",
    ),
    "the Connection's COMMIT does not know of a lost claim": Mutant(
        GUARDED,
        "        for watch in self.watches:\n            watch.refuse_lost()\n",
        "",
        "test_an_exception_after_a_rollback_inside_the_block_does_not_let_later_writes_commit",
    ),
    "a transaction that is begun in the block may commit": Mutant(
        WATCH,
        "            lose(claim)  # another transaction",
        "            pass  # another transaction",
        "test_a_transaction_that_is_begun_in_the_block_cannot_commit",
    ),
    "an incomplete claim may commit": Mutant(
        GUARDED,
        "                if why is not None:\n                    raise why",
        "                if False:\n                    raise why",
        "test_commit_is_refused_after_an_exception_that_was_caught_outside_the_block",
    ),
    "a claim without a row is reported as not completed": Mutant(
        OPEN,
        "    if not is_left:\n        return lost(claim)",
        "    if False:\n        return lost(claim)",
        "test_a_rollback_of_the_driver_in_a_block_that_fails_stops_the_commit",
    ),
    "the Session's commit is not watched": Mutant(
        WATCH, 'listen(session, "before_commit", _before_commit)', "pass", "test_last_word.py test_misuse.py"
    ),
    "savepoint releases are taken for commits": Mutant(
        WATCH,
        "    if session.in_nested_transaction():\n        return\n",
        "",
        "test_a_savepoint_of_the_caller_inside_the_block_may_fail test_claim.py",
    ),
    "a transaction that the driver has ended is not noticed by the Session": Mutant(
        GUARDED,
        "may_be_open=is_joined)\n        self._refuse_ended_on_server(connection)\n",
        "may_be_open=is_joined)\n",
        "test_last_word.py test_commit.py test_savepoints.py test_unseen.py",
    ),
    "another transaction's claims are taken for this one's": Mutant(
        GUARDED,
        "return held if held is not None and held.transaction_ref() is connection.get_transaction() else None",
        "return held",
        "test_last_word.py test_commit.py test_savepoints.py test_unseen.py",
    ),
    "a refused commit of the Session ends its transaction": Mutant(
        WATCH, "        held.refuse_early(connection, is_joined=is_joined)\n", "", "test_misuse.py test_claim_many.py"
    ),
    "the engine's COMMIT is not guarded": Mutant(
        "_transaction/guarded_engine.py",
        '_STEPS = (\n    "do_commit",\n',
        "_STEPS = (\n",
        "test_commit_of_the_connection_is_refused_too",
    ),
    "a refused COMMIT leaves its transaction open": Mutant(
        GUARD,
        "            if not is_sent or (",
        "            if False and (",
        "test_a_refused_commit_of_a_connection_hands_nothing_to_the_next_user_of_the_pool",
    ),
    "a failed batch leaves its transaction open": Mutant(
        GUARD,
        "if not is_sent or (claims and pooled.is_valid and is_open(pooled)):",
        "if not is_sent:",
        "test_pipeline.py test_pipeline_between.py test_last_word.py",
    ),
    "a dropped owner's COMMIT goes through": Mutant(
        GUARD,
        "if held is None or not (held.claims or held.watches):",
        "if held is None or held.connection_ref() is None:",
        "test_a_pool_that_commits_on_return_does_not_store_half_of_it",
    ),
    "a ROLLBACK keeps what was to be proved": Mutant(
        GUARD,
        "        held = self._forget(pooled)\n        if held is not None:\n            held.lose()\n        note_rollback(pooled)",
        "        note_rollback(pooled)",
        "test_nothing_of_a_transaction_is_kept_with_the_connection test_last_word.py",
    ),
    "a COMMIT keeps what it has proved": Mutant(
        GUARD,
        "            stop()\n        self._forget(pooled)\n",
        "            stop()\n",
        "test_nothing_of_a_transaction_is_kept_with_the_connection test_last_word.py",
    ),
    "a two-phase transaction is prepared without its receipt": Mutant(
        GUARD,
        "            held.prove(connection, may_pipeline=False)\n            claims = list(held.claims.values())\n            self._forget(connection)",
        "            claims = list(held.claims.values())\n            self._forget(connection)",
        "test_two_phase_sessions_work_and_refuse_an_incomplete_claim test_two_phase_sessions_take_the_plain_path",
    ),
    "an aborted transaction may commit": Mutant(
        GUARDED,
        "            if state is TransactionState.ABORTED:",
        "            if False:",
        "test_a_hook_on_the_last_statement_of_all_is_seen_by_the_driver_s_status",
    ),
    "an error that a hook has swallowed is not looked for": Mutant(
        GUARDED,
        "        self._refuse_ended_on_server(connection)  # or",
        "        pass  # or",
        "test_a_hook_on_the_last_statement_of_all_is_seen_by_the_driver_s_status",
    ),
    "an error that was swallowed in the block is not reported at its end": Mutant(
        COMPLETE,
        "            if state is TransactionState.ABORTED:\n                raise aborted()\n",
        "",
        "test_an_error_swallowed_in_the_block_raises_at_its_end",
    ),
    "the answer to a statement in an aborted transaction is not known": Mutant(
        SERVER,
        "sqlstate_of(error) == _IN_FAILED_TRANSACTION",
        "False",
        "test_an_aborted_transaction_is_found_where_the_driver_does_not_know test_a_hook_that_swallows_an_error_lets_no_commit_pass",
    ),
    "a second database is not looked for": Mutant(
        GUARDED,
        "        if not self.is_ended:\n            self._refuse_second_database(connection)\n",
        "",
        "test_a_second_database_that_a_hook_writes_to_is_refused",
    ),
    "a second database that commits first is not looked at": Mutant(
        GUARDED,
        "                refuse_written(connection)\n                continue",
        "                continue",
        "test_a_second_database_that_a_hook_writes_to_is_refused test_a_second_database_that_an_engine_s_commit_hook_writes_to test_business_rows_on_another_shard_are_refused",
    ),
    "a second database that commits last is not looked at": Mutant(
        GUARDED,
        "                refuse_written(other)",
        "                pass",
        "test_a_second_database_that_a_hook_writes_to_is_refused test_a_second_database_that_an_engine_s_commit_hook_writes_to test_business_rows_on_another_shard_are_refused",
    ),
    "a second database that joins later is not looked at": Mutant(
        WATCH,
        "    if current is not None:\n        _guarded(connection).join(current)",
        "    if current is not None:\n        pass",
        "test_a_second_database_that_a_hook_writes_to_is_refused test_other_writes.py",
    ),
    "a second database that was there before is not looked at": Mutant(
        WATCH,
        "                _guarded(connection).join(current)\n            else:",
        "                pass\n            else:",
        "test_business_rows_in_another_database_are_refused_before_anything_is_committed test_sharded.py",
    ),
    "a second database that was only read is refused": Mutant(
        "_dialects/__init__.py",
        "return name not in _REGISTRY or _class_for(name).may_have_written(connection)",
        "return True",
        "test_reading_from_another_postgresql_is_no_harm",
    ),
    "two-phase commit of two databases is refused": Mutant(
        GUARDED,
        "if root.session.twophase:",
        "if False:",
        "test_two_phase_commit_covers_two_databases test_two_phase_commit_covers_two_shards",
    ),
    "a second database is refused beside a claim that a savepoint took back": Mutant(
        GUARDED, "not watch.has_claims or (", "(", "test_a_claim_that_a_savepoint_took_back_asks_for_nothing"
    ),
    "a second database in AUTOCOMMIT mode is believed not to have written": Mutant(
        SERVER,
        "_MAY_WRITE if is_autocommit else HAS_WRITTEN",
        "HAS_WRITTEN",
        "test_another_postgresql_in_autocommit_mode_may_have_written",
    ),
    "a second database of a session that has ended is not looked at": Mutant(
        GUARDED,
        "if not any(part.claims for part in parts):",
        "if True:",
        "test_a_second_database_is_refused_after_the_end_of_a_session_joined_to_both",
    ),
    "a second database is refused for a claim that has committed": Mutant(
        GUARDED,
        "if not any(part.claims for part in parts):",
        "if False:",
        "test_what_follows_in_a_second_database_is_its_own_where_the_claim_is_committed",
    ),
    "a second database is not looked at after a commit in the block": Mutant(
        WATCH,
        "                held.join(taken_up)",
        "                pass",
        "test_a_second_database_is_refused_after_the_end_of_a_session_joined_to_both",
    ),
    "a request may lie on several shards": Mutant(
        "_claim/sharding.py",
        "if _ask(session, model, key) is not shard:",
        "if False:",
        "test_a_chooser_that_takes_turns_is_refused_before_any_sql test_a_batch_whose_ids_lie_on_two_shards_is_refused",
    ),
    "a chooser of shards is asked once": Mutant(
        "_claim/sharding.py",
        "for key in (*keys[1:], first):",
        "for key in keys[1:]:",
        "test_a_chooser_that_takes_turns_is_refused_before_any_sql",
    ),
    "a batch lies on the shard of its first id": Mutant(
        BATCH,
        "*(request.key for request in requests.values())",
        "first.key",
        "test_a_batch_whose_ids_lie_on_two_shards_is_refused",
    ),
    "an effect is looked for on the shard of no request": Mutant(
        "_effects/lease.py",
        "Rows(session, terms.settings, request.key), request.key",
        "Rows(session, terms.settings), request.key",
        "test_an_effect_lies_on_the_shard_of_its_scope_however_it_began",
    ),
    "a receipt is erased on the shard of no request": Mutant(
        RETENTION,
        "arguments_of(session, model, key)",
        "arguments_of(session, model)",
        "test_a_receipt_is_erased_on_its_shard",
    ),
}

SPLIT_READS = {
    "a claim asks for the engine of a read": Mutant(
        "_claim/binding.py",
        '{"mapper": settings.mapper, "clause": settings.write}',
        '{"mapper": settings.mapper}',
        "test_a_session_that_splits_reads_from_writes_claims_on_the_primary",
    ),
    "what has no guard asks for the engine of a read": Mutant(
        "_claim/binding.py",
        "_OfModel(model, class_mapper(model, configure=False), update(model))",
        "_OfModel(model, class_mapper(model, configure=False), None)",
        "test_every_verb_asks_the_primary",
    ),
    "a claim asks for the engine of an INSERT": Mutant(
        "_settings.py",
        "return update(self.model)",
        "from sqlalchemy import insert; return insert(self.model)",
        "test_a_session_that_splits_reads_from_writes_claims_on_the_primary",
    ),
    "a relay listens where the session reads": Mutant(
        "_effects/notifications.py",
        "session.get_bind(**binding.arguments(session, self._settings))",
        "session.get_bind(mapper=self._settings.model)",
        "test_a_commit_wakes_the_relay",
    ),
    "the store looks for its table where the session reads": Mutant(
        "compat.py",
        "arguments = binding.arguments(self._session, self._settings)",
        'arguments = {"mapper": self._settings.model}',
        "test_every_verb_asks_the_primary",
    ),
    "a test helper reads where the session reads": Mutant(
        "testing/_helpers.py",
        "binding.arguments_of(session, model, key)",
        '{"mapper": model}',
        "test_every_verb_asks_the_primary",
    ),
}

AS_TEXT = {
    "a COMMIT as text is not proved": Mutant(
        GUARD,
        "elif step.verb is Verb.COMMIT:",
        "elif False:",
        "test_a_commit_as_text_behind_the_block_stores_the_receipt",
    ),
    "a COMMIT as text leaves out what would go with a COMMIT": Mutant(
        GUARD,
        "        held.prove(connection, may_pipeline=False)\n        claims",
        "        held.prove(connection, may_pipeline=True)\n        claims",
        "test_a_commit_as_text_behind_the_block_stores_the_receipt",
    ),
    "a session cannot end what a COMMIT as text has ended": Mutant(
        GUARDED,
        "        if not self.is_ended:\n            self._refuse",
        "        if True:\n            self._refuse",
        "test_a_commit_as_text_behind_the_block_stores_the_receipt",
    ),
    "a COMMIT as text that fails counts as one": Mutant(
        GUARD,
        "            execute()\n            held.keep()\n",
        "            held.keep()\n            execute()\n",
        "test_a_commit_as_text_that_fails_stores_nothing_and_is_not_taken_for_one",
    ),
    "a COMMIT as text that succeeds counts as lost": Mutant(
        GUARD,
        "            execute()\n            held.keep()\n",
        "            execute()\n",
        "test_a_commit_as_text_behind_the_block_stores_the_receipt",
    ),
    "PREPARE TRANSACTION as text is not proved": Mutant(
        STEPS,
        "|END|PREPARE{_SPACE}+TRANSACTION)\\b",
        "|END)\\b",
        "test_a_transaction_that_is_prepared_as_text_holds_its_receipt",
    ),
    "END as text is not proved": Mutant(
        STEPS, "|END|PREPARE", "|PREPARE", "test_a_commit_as_text_behind_the_block_stores_the_receipt"
    ),
    "ABORT as text is not known": Mutant(
        STEPS, "(?:ROLLBACK|ABORT)", "(?:ROLLBACK)", "test_a_rollback_as_text_behind_the_block"
    ),
    "a comment hides a statement": Mutant(
        STEPS,
        'rf"""(?:{_SPACE}|;)*(?:',
        'rf"""\\s*(?:',
        "test_a_rollback_as_text_behind_the_block test_a_commit_as_text_behind_the_block_stores_the_receipt",
    ),
    "a statement with a comment in front is not looked at": Mutant(
        STEPS,
        '"aAcCdDeEpPrRsS/-; \\t\\r\\n\\f\\v"',
        '"aAcCdDeEpPrRsS"',
        "test_a_rollback_as_text_behind_the_block test_a_commit_as_text_behind_the_block_stores_the_receipt",
    ),
    "quoted names of savepoints are folded": Mutant(
        STEPS,
        "name[1:-1] if name.startswith('\"') else name.lower()",
        "name.strip('\"').lower()",
        "test_names_of_savepoints_are_compared_as_postgresql_does",
    ),
    "plain names of savepoints are not folded": Mutant(
        STEPS, "else name.lower())", "else name)", "test_names_of_savepoints_are_compared_as_postgresql_does"
    ),
    "a ROLLBACK as text is not followed": Mutant(
        GUARDED,
        "            case Verb.ROLLBACK:\n                self.lose()",
        "            case Verb.ROLLBACK:\n                pass",
        "test_a_statement_behind_a_rollback_as_text_is_not_sent",
    ),
    "a statement behind a ROLLBACK as text is sent": Mutant(
        GUARD,
        "        if held is not None:\n            held.refuse_ended_as_text()\n        if holds_more",
        "        if holds_more",
        "test_a_statement_behind_a_rollback_as_text_is_not_sent",
    ),
    "a text of several statements keeps the names": Mutant(
        "_dialects/steps.py",
        'return ";" in statement or statement.count("/*") > 1',
        "return False",
        "test_what_takes_the_names_away_behind_another_statement_of_one_text",
    ),
    "what breaks off the undoing of a claim by key is raised as it is": Mutant(
        "_dialects/postgresql/key_fast_path.py",
        "            raise_as_sqlalchemy(connection, error, ROLLBACK)",
        "            raise",
        "test_a_connection_that_is_lost_while_a_claim_is_undone_is_an_error_of_sqlalchemys",
    ),
    "the completion needs a right that the claim does not": Mutant(
        "_dialects/postgresql/statements.py",
        'owned, bindparam("proof", type_=Text) == _PROOF)',
        "owned, IS_SAME)",
        "test_a_role_that_may_not_ask_whether_a_transaction_has_a_number",
    ),
    "a usual statement behind a ROLLBACK as text is sent": Mutant(
        GUARD,
        '";" not in statement and not self._ended:',
        '";" not in statement:',
        "test_a_statement_behind_a_rollback_as_text_is_not_sent",
    ),
    "a statement with many sets behind a ROLLBACK as text is sent": Mutant(
        GUARD,
        "        execute = partial(self._do_executemany, cursor, statement, parameters, context)\n        self._execute(statement, context, execute)",
        "        self._do_executemany(cursor, statement, parameters, context)",
        "test_a_statement_behind_a_rollback_as_text_is_not_sent",
    ),
    "a statement without parameters behind a ROLLBACK as text is sent": Mutant(
        GUARD,
        "self._execute(statement, context, partial(self._do_execute_no_params, cursor, statement, context))",
        "self._do_execute_no_params(cursor, statement, context)",
        "test_a_statement_behind_a_rollback_as_text_is_not_sent",
    ),
    "a claim behind a ROLLBACK as text is sent": Mutant(
        "_claim/binding.py",
        "        held.refuse_ended_as_text()\n        return",
        "        return",
        "test_a_statement_behind_a_rollback_as_text_is_not_sent",
    ),
    "a SAVEPOINT is not followed": Mutant(
        GUARDED,
        "                self.savepoints.begin(step.name)",
        "                pass",
        "test_a_savepoint_as_text_behind_the_block_is_no_harm",
    ),
    "a RELEASE is not followed": Mutant(
        GUARDED,
        "                self.savepoints.release(step.name)",
        "                pass",
        "test_savepoints_as_text_are_followed",
    ),
    "a ROLLBACK TO is not followed": Mutant(
        GUARDED,
        "                self.savepoints.roll_back_to(step.name, connection)",
        "                pass",
        "test_a_savepoint_as_text_around_the_claim_takes_all_of_it_back",
    ),
    "a ROLLBACK TO takes no claim back": Mutant(
        SAVEPOINTS,
        "                self.undo(claim)\n            elif max",
        "                pass\n            elif max",
        "test_savepoints_within_savepoints",
    ),
    "a savepoint from before the claim is not known": Mutant(
        SAVEPOINTS,
        "            if not is_there(claim, connection):\n                self.undo(claim)",
        "            pass",
        "test_a_savepoint_as_text_around_the_claim_takes_all_of_it_back",
    ),
    "a savepoint that is open at the end of the block is not noticed": Mutant(
        SAVEPOINTS,
        "elif max(claim.savepoints, claim.savepoints_at_end) > depth:",
        "elif False:",
        "test_a_savepoint_as_text_that_is_open_at_the_end_of_the_block",
    ),
    "a savepoint behind the block takes the completion along": Mutant(
        SAVEPOINTS,
        "elif max(claim.savepoints, claim.savepoints_at_end) > depth:",
        "else:",
        "test_a_savepoint_as_text_behind_the_block_is_no_harm",
    ),
    "a claim in a savepoint that was released goes with the next one": Mutant(
        SAVEPOINTS,
        "            claim.savepoints = min(claim.savepoints, depth)\n",
        "",
        "test_savepoints_as_text_are_followed",
    ),
    "a block that ended in a savepoint that was released goes with the next one": Mutant(
        SAVEPOINTS,
        "            claim.savepoints_at_end = min(claim.savepoints_at_end, depth)\n",
        "",
        "test_savepoints_as_text_are_followed",
    ),
    "of two savepoints of one name the outer one is meant": Mutant(
        SAVEPOINTS,
        "for depth in reversed(range(len(self.names))):",
        "for depth in range(len(self.names)):",
        "test_savepoints_as_text_are_followed",
    ),
    "ROLLBACK TO ends the savepoint": Mutant(
        SAVEPOINTS,
        "del self.names[depth + 1 :]",
        "del self.names[max(depth, 0) :]",
        "test_savepoints_as_text_are_followed",
    ),
}

ENGINES = {
    "a completion by the key ignores the transaction": Mutant(
        KEY_SQL,
        "                *which,\n                is_same,\n",
        "                *which,\n",
        "test_a_completion_in_another_transaction_is_refused test_a_batch_in_another_transaction_is_refused",
    ),
    "a batch by the key is counted without the transaction": Mutant(
        KEY_SQL,
        "is_one_of(table), is_answered, is_same)",
        "is_one_of(table), is_answered)",
        "test_a_batch_that_was_completed_early_in_another_transaction_is_not_counted",
    ),
    "a claim by the key leaves its lock_timeout": Mutant(
        BY_KEY,
        "        self._restore(connection, limits)\n",
        "",
        "test_a_claim_and_a_replay_leave_the_lock_timeout_alone",
    ),
    "a wait that has timed out is swallowed without ROLLBACK TO": Mutant(
        BY_KEY,
        "            run(ROLLBACK)\n            run(RELEASE)\n",
        "",
        "test_a_claim_that_is_held_elsewhere_leaves_the_transaction_usable",
    ),
    "40001 is taken for a wait that has timed out": Mutant(
        BY_KEY,
        "            if sqlstate_of(error) != LOCK_NOT_AVAILABLE:\n                raise\n",
        "",
        "test_above_read_committed_a_receipt_that_the_snapshot_does_not_show_is_40001",
    ),
    "a busy id makes all of its batch busy": Mutant(
        BY_KEY,
        "if len(claims.fingerprints) == 1:",
        "if True:",
        "test_a_busy_id_makes_no_other_one_busy",
    ),
    "a batched claim that has timed out leaves its transaction in error": Mutant(
        KEY_PATH,
        "                self._undo(connection, pipeline)\n",
        "",
        "test_a_batched_claim_that_is_held_elsewhere_leaves_the_transaction_usable",
    ),
    "a lock function that only says so is believed": Mutant(
        PROBE,
        " and bool(connection.scalar(_IS_LOCKED, key))",
        "",
        "test_a_lock_function_that_only_says_so_is_not_believed",
    ),
    "an engine that decides at COMMIT is let in": Mutant(
        DIALECTS,
        "if found.locking is None:",
        "if False:",
        "test_aurora_dsql_is_refused_by_name",
    ),
    "an engine is asked at each claim": Mutant(
        DIALECTS,
        "    PROTOCOLS[connection.dialect, table, locking] = protocol\n",
        "    _CAPABILITIES.clear()\n",
        "test_an_engine_is_asked_once_and_in_the_transaction_of_its_first_claim",
    ),
}

STANDBY = {
    "psycopg's warning of a local commit is not heard": Mutant(
        DRIVERS,
        "        driver.add_notice_handler(note)\n",
        "",
        "test_a_commit_whose_wait_was_cancelled_is_no_answer test_nor_is_it_one_on_async_drivers",
    ),
    "asyncpg's warning of a local commit is not heard": Mutant(
        DRIVERS, "        driver.add_log_listener(hear)\n", "", "test_nor_is_it_one_on_async_drivers"
    ),
    "psycopg2's warning of a local commit is not heard": Mutant(
        DRIVERS, "                _note(noted, message, None)\n", "", "test_psycopg2_keeps_its_notices"
    ),
    "psycopg2's notices are lost": Mutant(
        DRIVERS, "                kept.append(message)\n", "", "test_psycopg2_keeps_its_notices"
    ),
    "a COMMIT that only this server has stored is no error": Mutant(
        GUARD,
        "        self._forget(pooled)\n        if noted:",
        "        self._forget(pooled)\n        if False:",
        "test_a_commit_whose_wait_was_cancelled_is_no_answer",
    ),
    "a COMMIT as text that only this server has stored is no error": Mutant(
        OPEN,
        "        stop()\n    if noted:",
        "        stop()\n    if False:",
        "test_a_commit_as_text_whose_wait_was_cancelled_is_no_answer",
    ),
}

PIPELINES = {
    "a DEALLOCATE ALL is not heard": Mutant(
        PREPARED,
        "        if driver in DEALLOCATED:\n",
        "        if False:\n",
        "test_a_rollback_after_which_psycopg_deallocates_everything",
    ),
    "a rollback takes all names for gone": Mutant(
        PREPARED,
        "if found.issuperset(names)}",
        "if False}",
        "test_a_rollback_after_which_psycopg_deallocates_nothing",
    ),
    "a rollback is not noted": Mutant(
        GUARD,
        "            held.lose()\n        note_rollback(pooled)\n",
        "            held.lose()\n",
        "test_a_rollback_after_which_psycopg_deallocates_everything",
    ),
    "a DROP is not noted": Mutant(
        GUARD,
        "{Verb.ROLLBACK, Verb.ROLLBACK_TO, Verb.DISCARD}",
        "{Verb.ROLLBACK, Verb.ROLLBACK_TO}",
        "test_what_makes_psycopg_deallocate_between_claim_and_commit",
    ),
    "statements are prepared before BEGIN": Mutant(
        PIPELINE,
        "            commands += [",
        "            commands[:0] = [",
        "test_begin_carries_the_settings_of_the_session",
    ),
    "BEGIN forgets the isolation level": Mutant(
        DRIVERS,
        "if driver.isolation_level is not None:",
        "if False:",
        "test_begin_carries_the_settings_of_the_session",
    ),
    "BEGIN forgets DEFERRABLE": Mutant(
        DRIVERS, "if driver.deferrable is not None:", "if False:", "test_begin_carries_the_settings_of_the_session"
    ),
    "BEGIN forgets READ ONLY": Mutant(
        DRIVERS,
        "if driver.read_only is not None:",
        "if False:",
        "test_a_read_only_transaction_is_named_as_on_the_plain_path",
    ),
    "the COMMIT trusts names that the transaction has not met": Mutant(
        ACQUIRE,
        "begun.names if begun else None)",
        "begun.names if begun else __import__('safeagent_sa._dialects.postgresql.pipeline', fromlist=['_']).Pipeline.of(connection)"
        "._prepared._there.get(protocol.fast_path._texts))",
        "test_completions_do_not_trust_names_of_earlier_transactions",
    ),
    "the COMMIT trusts names that were taken away": Mutant(
        PREPARED,
        "return self._there.get(texts) == names and driver not in DEALLOCATED",
        "return True",
        "test_a_savepoint_that_is_rolled_back_after_complete",
    ),
    "names are used that are not there": Mutant(
        PREPARED,
        "            self._may_prepare = False\n",
        "            pass\n",
        "test_a_foreign_deallocate_all_costs_one_detour",
    ),
    "a cancel is not heard": Mutant(
        FAST_PATH,
        " and error.sqlstate not in _NOT_AGAIN",
        "",
        "test_a_claim_that_was_cancelled_is_not_sent_again",
    ),
    "a guard does not pipeline by default": Mutant(
        SETTINGS,
        '        pipeline: Literal["off", "auto"] = "auto",\n',
        '        pipeline: Literal["off", "auto"] = "off",\n',
        "test_a_guard_pipelines_where_it_is_not_asked_not_to",
    ),
    "the pipeline passes by who listens or logs": Mutant(
        FAST_PATH,
        " and is_unheard(connection)",
        "",
        "test_a_listener_of_the_engine_sees_both test_the_log_shows_both test_a_handler_of_errors_sees_the_error_of_either",
    ),
    "the COMMIT passes by who has come to listen since": Mutant(
        FAST_PATH,
        "        pipeline = self._pipeline(connection)\n        if pipeline is None:\n            return None\n"
        "        parameters = completion_parameters",
        "        pipeline = _module().Pipeline.of(connection)\n        if pipeline is None:\n            return None\n"
        "        parameters = completion_parameters",
        "test_a_listener_that_comes_after_the_claim_sees_the_completion",
    ),
    "the pipeline passes by cursors of a tool": Mutant(
        PIPELINE,
        "if cursors is None or driver.cursor_factory is not cursors:",
        "if cursors is None:",
        "test_cursors_and_connections_of_a_tool_see_both",
    ),
    "the pipeline passes by methods that a tool has replaced": Mutant(
        DRIVERS,
        'type(function) is not FunctionType or not function.__globals__["__name__"].startswith("psycopg.")',
        "type(function) is not FunctionType",
        "test_a_method_that_is_replaced_on_the_class_of_the_cursors_sees_both test_a_commit_that_is_replaced_is_called",
    ),
    "the pipeline passes by methods behind a proxy": Mutant(
        DRIVERS,
        'type(function) is not FunctionType or not function.__globals__["__name__"].startswith("psycopg.")',
        'not function.__globals__["__name__"].startswith("psycopg.")',
        "test_a_method_that_is_replaced_on_the_class_of_the_cursors_sees_both",
    ),
    "the pipeline passes by connections of a tool": Mutant(
        PIPELINE,
        "cursors = _OF_PSYCOPG.get(type(driver))",
        "cursors = next((_OF_PSYCOPG[kind] for kind in _OF_PSYCOPG if isinstance(driver, kind)), None)",
        "test_a_class_of_connections_that_is_not_psycopgs_takes_the_plain_path",
    ),
    "why the server has ended the connection is lost in a batch": Mutant(
        PIPELINE,
        "        if not any(result.status == _FAILED for result in results):\n            raise\n",
        "        raise\n",
        "test_why_the_server_has_ended_the_connection_is_raised test_so_it_is_in_async_mode",
    ),
    "a claim is sent again over a connection that is gone": Mutant(
        FAST_PATH,
        " and not is_closed(connection.connection)",
        "",
        "test_why_the_server_has_ended_the_connection_is_raised",
    ),
    "a COMMIT that is answered with ROLLBACK counts as done": Mutant(
        PIPELINE,
        'return bool(results[-1].command_status == b"COMMIT")',
        "return True",
        "test_a_commit_that_the_server_answers_with_rollback_is_no_commit",
    ),
    "the pipeline commits what psycopg would refuse to": Mutant(
        PIPELINE,
        'if getattr(driver, "_num_transactions", _UNKNOWN) or getattr(driver, "_tpc", _UNKNOWN):',
        'if getattr(driver, "_tpc", _UNKNOWN):',
        "test_in_a_block_of_the_driver_s_the_driver_refuses_the_commit",
    ),
    "the pipeline commits a transaction that is to be prepared": Mutant(
        PIPELINE,
        'if getattr(driver, "_num_transactions", _UNKNOWN) or getattr(driver, "_tpc", _UNKNOWN):',
        'if getattr(driver, "_num_transactions", _UNKNOWN):',
        "test_in_a_two_phase_transaction_of_the_driver_s_the_driver_refuses_the_commit",
    ),
    "what psycopg hides is needed to claim": Mutant(
        PIPELINE,
        "_UNKNOWN = True",
        "_UNKNOWN = False",
        "test_this_psycopg_has_what_the_pipeline_asks_for",
    ),
    "a transaction that can be neither committed nor rolled back stays open": Mutant(
        GUARD,
        "                driver.close()",
        "                pass",
        "test_in_a_block_of_the_driver_s_the_driver_refuses_the_commit",
    ),
    "the pipeline passes by a wrapper that was there first": Mutant(
        GUARD,
        "is_first and self._wrapped.isdisjoint(_SEEN_BY_TOOLS)",
        "is_first",
        "test_a_wrapper_around_do_execute_sees_both test_a_wrapper_around_do_commit_sees_the_commit "
        "test_a_dialect_with_its_own_commit_is_asked_to_commit",
    ),
    "the pipeline passes by a wrapper that came later": Mutant(
        GUARD,
        "is_first and self._wrapped.isdisjoint(_SEEN_BY_TOOLS)",
        "self._wrapped.isdisjoint(_SEEN_BY_TOOLS)",
        "test_a_wrapper_around_do_execute_sees_both",
    ),
    "statements are prepared through a pooler": Mutant(
        PREPARED,
        "self._may_prepare = str(process).encode() in found",
        "pass",
        "test_names_are_for_connections_that_have_the_server_to_themselves",
    ),
    "statements are prepared at once": Mutant(
        PREPARED,
        "self._is_known, self._may_prepare = False, True",
        "self._is_known, self._may_prepare = True, True",
        "test_names_are_for_connections_that_have_the_server_to_themselves",
    ),
    "an interrupted batch leaves a connection that is used again": Mutant(
        FAST_PATH,
        "                raise_as_sqlalchemy(connection, error, self._texts.claim.sql)",
        "                raise",
        "test_a_wait_that_something_else_breaks_off_gives_the_connection_up",
    ),
    "what is still on its way is read by the next user": Mutant(
        PIPELINE,
        "            if driver.pgconn.pipeline_status != _OFF or not isinstance(error, psycopg.Error):",
        "            if False:",
        "test_a_wait_that_something_else_breaks_off_gives_the_connection_up",
    ),
    "the pool hands on a connection that was given up": Mutant(
        GUARD,
        "            self._replace_closed(pooled, error)\n",
        "",
        "test_a_commit_that_is_broken_off_leaves_the_pool_no_closed_connection",
    ),
    "an older psycopg cannot claim": Mutant(
        FAST_PATH,
        "    except ImportError:",
        "    except ZeroDivisionError:",
        "test_an_older_psycopg_takes_the_plain_path",
    ),
    "the client's encoding is not looked at": Mutant(
        DRIVERS,
        'return "utf-8" if encoding == "ascii" else encoding',
        'return "utf-8"',
        "test_the_current_encoding_is_used test_a_connection_in_another_encoding_is_pipelined_as_well",
    ),
    "a completion that is lost with the COMMIT has no name": Mutant(
        PIPELINE,
        "                raise completions[failed].lost() from None\n",
        "                raise\n",
        "test_a_rollback_of_the_driver_behind_the_block",
    ),
}

BATCHES = {
    "a batch ignores the locks": Mutant(
        SQL, "select(*given).select_from(new).where(are_free)", "select(*given).select_from(new)", "test_claim_many.py"
    ),
    "a released claim is stored": Mutant(BATCH, "        if batch.released:", "        if False:", "test_poison.py"),
    "a release deletes what is no claim any more": Mutant(
        BASE,
        "            columns.status == ExecutionStatus.CLAIMED.value,\n",
        "",
        "test_a_released_row_that_is_no_claim_any_more_is_not_deleted",
    ),
    "the rows of a release are not counted": Mutant(
        BATCH,
        "request_ids) != len(request_ids):",
        "request_ids) < 0:",
        "test_a_released_row_that_is_no_claim_any_more_is_not_deleted",
    ),
    "a released execution stands for its batch": Mutant(
        BATCH,
        "        if texts:\n",
        "        if False:\n",
        "test_a_released_row_that_is_no_claim_any_more_is_not_deleted",
    ),
    "the effects of a released execution are stored": Mutant(
        BATCH,
        "settings.fingerprinter, kept)",
        "settings.fingerprinter, batch.new)",
        "test_the_effects_of_a_released_execution_are_not_stored",
    ),
    "a block for one of a batch begins without its savepoint": Mutant(
        EACH,
        "            binding.reach(session, settings, key)",
        "            pass",
        "test_what_passes_the_session_by_is_undone_too",
    ),
    "a failed flush that such a block swallows completes it": Mutant(
        EACH,
        "    if not session.is_active:",
        "    if False:",
        "test_a_failed_flush_that_the_block_swallows_releases_the_execution",
    ),
    "an error of the whole transaction is taken for that of one message": Mutant(
        EACH,
        "or is_transient(error) or",
        "or",
        "test_an_error_that_asks_for_the_whole_transaction_again_passes_through",
    ),
    "a lost connection is taken for an error of one message": Mutant(
        EACH,
        " or not _can_go_on(connection):",
        ":",
        "test_a_lost_connection_passes_through_even_where_the_block_raises_another_error",
    ),
    "a savepoint that could not be rolled back counts as undone": Mutant(
        EACH, "if error is not undone or", "if", "test_a_savepoint_that_is_ended_as_text_ends_the_batch"
    ),
    "a savepoint that the block has ended counts as undone": Mutant(
        EACH,
        "undone = error if _is_open(session, savepoint) else None",
        "undone = error",
        "test_a_block_that_ends_its_own_savepoint_ends_the_batch",
    ),
    "an interrupted block keeps its result": Mutant(
        EACH,
        "                execution._discard()  # noqa: SLF001\n",
        "",
        "test_what_an_interrupted_block_has_completed_is_not_stored",
    ),
    "a release in the block keeps its writes": Mutant(
        EACH, "        raise _Released\n", "        pass\n", "test_a_release_inside_the_block_undoes_its_writes"
    ),
    "a batch has no limit": Mutant(
        BATCH, "    if size > limit:", "    if False:", "test_the_error_for_too_many_ids_shows_a_loop_that_claims_them"
    ),
    "a batch takes most of the lock table": Mutant(
        POSTGRESQL,
        "max_batch = 1_000",
        "max_batch = 10_000",
        "test_the_error_for_too_many_ids_shows_a_loop_that_claims_them",
    ),
}

WORDS = {
    "ids are normalised": Mutant(
        IDS,
        "    return Key(scope, request_id)",
        "    return Key(scope, request_id.lower())",
        "test_ids_are_compared_byte_by_byte",
    ),
    "the scope is ignored": Mutant(
        IDS, "    return Key(scope, request_id)", '    return Key("", request_id)', "test_scopes_are_separate"
    ),
    "a scope that is a template is one constant": Mutant(
        IDS,
        'if "{" in scope and (field',
        "if False and (field",
        "test_templates_that_nothing_fills_in_are_no_scope_and_no_action",
    ),
    "an action that is a template is taken": Mutant(
        IDS,
        'if "{" in action and (field',
        "if False and (field",
        "test_templates_that_nothing_fills_in_are_no_scope_and_no_action",
    ),
    "the scope of a decorated function is not filled in": Mutant(
        SIGNATURE,
        '"scope": self._scope(arguments), "result_type"',
        '"scope": None, "result_type"',
        "test_scope_is_a_template_as_the_id_is",
    ),
    "a scope with the name of a parameter is a plain text": Mutant(
        SIGNATURE,
        "        if root in names:",
        "        if False:",
        "test_each_of_the_three_remedies_for_a_refused_scope_works test_idempotent.py",
    ),
    "a function that returns no scope gives the guard's own": Mutant(
        SIGNATURE,
        '        if value is None or value == "":',
        "        if False:",
        "test_a_scope_that_names_no_tenant_is_an_error_before_any_sql",
    ),
    "a template without an argument is an id": Mutant(
        SIGNATURE,
        "    if template.is_constant:\n        raise ValueError(",
        "    if False:\n        raise ValueError(",
        "test_idempotent.py",
    ),
    "two calls that mean different things get one text": Mutant(
        TEMPLATE,
        "if not is_last and (text + separator).find(separator) != len(text):",
        "if False:",
        "test_a_part_that_names_nothing_is_an_error_before_any_sql",
    ),
    "a template takes values whose text names nothing": Mutant(
        TEMPLATE,
        "if not isinstance(value, _STABLE) or isinstance(value, bool):",
        "if False:",
        "test_a_part_that_names_nothing_is_an_error_before_any_sql",
    ),
    "a template takes None": Mutant(
        TEMPLATE,
        'if value is None or value == "":',
        "if False:",
        "test_a_part_that_names_nothing_is_an_error_before_any_sql",
    ),
    "a keyword with the name of an option does not reach the function": Mutant(
        ARGUMENTS,
        "(each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and not is_given:",
        "() and not is_given:",
        "test_a_parameter_with_the_name_of_an_option_is_refused_by_name",
    ),
    "a keyword is refused although its value is given": Mutant(
        ARGUMENTS,
        "(each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and not is_given:",
        "(each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):",
        "test_the_ways_that_the_error_names_reach_the_function",
    ),
    "an effect whose function does not fit is begun": Mutant(
        ARGUMENTS,
        "        signature.bind(None, *args, **kwargs)",
        "        pass",
        "test_mistakes_are_named_before_anything_is_sent test_a_handler_that_cannot_be_called_is_refused_before_anything_is_taken",
    ),
}

STORED = {
    "results are not checked for a round trip": Mutant(
        JSON_TEXT, "if _dump(copy) != text:", "if False:", "test_results_that_cannot_be_given_back_are_refused"
    ),
    "a dict with other keys than texts is taken for JSON": Mutant(
        JSON_TEXT, "if type(key) is not str:", "if False:", "test_results_that_cannot_be_given_back_are_refused"
    ),
    "the first caller shares its result with what is stored": Mutant(
        JSON_TEXT,
        "    copy = _copied(value)\n",
        "    copy = value\n",
        "test_the_first_caller_gets_what_every_retry_gets",
    ),
    "a tuple stays one for the first caller": Mutant(
        JSON_TEXT,
        "    if kind is not list:\n",
        "    if kind is tuple:\n        return value\n    if kind is not list:\n",
        "test_what_json_changes_is_changed_for_the_first_caller_too",
    ),
    "one key twice is read": Mutant(
        JSON_TEXT,
        "    if len(found) != len(pairs):",
        "    if False:",
        "test_what_no_reader_may_give_a_value_for_is_not_read",
    ),
    "NaN is read": Mutant(
        JSON_TEXT, ", parse_constant=_refuse_constant", "", "test_what_no_reader_may_give_a_value_for_is_not_read"
    ),
    "a number that is too large is read as infinity": Mutant(
        JSON_TEXT, ", parse_float=_finite", "", "test_what_no_reader_may_give_a_value_for_is_not_read"
    ),
    "the error for what cannot be read holds it": Mutant(
        JSON_TEXT,
        "        pass\n    else:",
        "        raise UnreadableError from None\n    else:",
        "test_what_no_reader_may_give_a_value_for_is_not_read",
    ),
    "a receipt that cannot be read has no name": Mutant(
        OUTCOME,
        "        return json_text.read(stored.result)",
        "        return json_text.decode(stored.result)",
        "test_a_receipt_that_cannot_be_read_is_an_error_by_name_and_nothing_runs_again",
    ),
    "a receipt that cannot be read ends the whole batch": Mutant(
        BATCH,
        "        batch.blocked.append(error)",
        "        raise",
        "test_one_broken_receipt_leaves_the_rest_of_a_batch_readable",
    ),
    "what was recorded about a failure decides what it is": Mutant(
        JSON_TEXT,
        '        found = {"message": "what was recorded about it cannot be read"}',
        "        raise",
        "test_a_failure_is_one_whatever_was_recorded_about_it",
    ),
    "details that cannot be read are lost": Mutant(
        JSON_TEXT,
        'found if isinstance(found, dict) else {"unreadable": cut_text(details)}',
        "found if isinstance(found, dict) else {}",
        "test_a_doubt_can_be_listed_and_resolved_whatever_is_known_about_it",
    ),
    "typed results are not compared": Mutant(
        RESULTS,
        "if without_order(again) != without_order(plain) or",
        "if False and",
        "test_a_value_that_would_come_back_as_another_one_is_refused",
    ),
    "typed results come back plain": Mutant(
        RESULTS,
        'self._adapter.validate_json(f"[{text}]")[0]',
        "json_text.decode(text)",
        "test_a_replay_equals_the_first_answer_in_type_and_value",
    ),
}

EFFECTS = {
    "an effect is not marked as started": Mutant(
        LEASE,
        'values = {"effect_started_at": rows.protocol.now(), "lease_expires_at"',
        'values = {"lease_expires_at"',
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "an outcome is written without the fence": Mutant(
        ROWS,
        "columns.token == token, ",
        "columns.token == columns.token, ",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a write of an attempt ignores the status": Mutant(
        ROWS,
        ", columns.status.in_(statuses))",
        ",)",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a mark is set on what was parked": Mutant(
        LEASE,
        '.protocol.now(), "lease_expires_at": rows.protocol.later(self.terms.seconds)}\n        if not rows.write(self.key, self.token, values, LEASED)',
        '.protocol.now(), "lease_expires_at": rows.protocol.later(self.terms.seconds)}\n        if not rows.write(self.key, self.token, values, LEASED, IN_DOUBT)',
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a takeover trusts its look": Mutant(
        ROWS,
        "where(*which, is_free)",
        "where(*which)",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a takeover trusts the end of the lease": Mutant(
        ROWS,
        "((columns.status == LEASED) & ended)",
        "(columns.status == LEASED)",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a takeover trusts the status": Mutant(
        ROWS,
        "((columns.status == LEASED) & ended)",
        "ended",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a takeover trusts the action": Mutant(
        LEASE,
        "columns.action == stored.action, ",
        "columns.action == columns.action, ",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a takeover trusts the fingerprint": Mutant(
        LEASE,
        ", columns.fingerprint == stored.fingerprint)",
        ",)",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a takeover trusts the key": Mutant(
        LEASE,
        "rows.take_over(*rows.by_key(key), *same",
        "rows.take_over(*same",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a park takes over what may have happened": Mutant(
        ROWS,
        "is_parked = may_have_happened & parks",
        "is_parked = literal(False)",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a park takes the lease of the attempt away": Mutant(
        ROWS,
        "case((is_parked, columns.token), else_=literal(token, columns.token.type))",
        "literal(token, columns.token.type)",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a takeover forgets that it may have happened": Mutant(
        ROWS,
        '"effect_started_at": case((may_have_happened, mark), else_=null()),',
        "",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a takeover ignores a conflict": Mutant(
        LEASE,
        " and conflict(request, terms.settings.fingerprinter, found.stored) is None",
        "",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a safe error settles what came before": Mutant(
        LEASE,
        "if not self.is_in_doubt:",
        "if True:",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a probe settles nothing": Mutant(
        FLOW,
        "lease = lease._replace(is_in_doubt=False)",
        "pass",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "what may have happened is a dead letter": Mutant(
        RELAY,
        "elif lease.is_in_doubt:",
        "elif False:",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "effects are not made durable": Mutant(
        ROWS,
        "self._settings.make_durable(self.connection, self.protocol)",
        "pass",
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a late worker overwrites a recorded outcome": Mutant(
        LEASE,
        "values, LEASED, IN_DOUBT):\n            return True",
        'values, LEASED, IN_DOUBT, "completed"):\n            return True',
        "test_fence.py test_between.py test_durability.py test_outbox.py test_effects.py",
    ),
    "a lease that has not ended is taken over": Mutant(
        ROWS,
        "(self.protocol.age_of(columns.lease_expires_at) >= 0)",
        "columns.lease_expires_at.is_not(None)",
        "test_a_takeover_trusts_no_earlier_read",
    ),
    "a lease never ends": Mutant(
        ROWS,
        "self.seconds_left is None or self.seconds_left <= 0",
        "False",
        "test_a_crash_before_the_mark_is_taken_over",
    ),
    "a lease has always ended": Mutant(
        ROWS, "self.seconds_left is None or self.seconds_left <= 0", "True", "test_effects.py"
    ),
    "a resolution keeps the token": Mutant(
        DOUBT, 'values["token"] = uuid.uuid4()', "pass", "test_a_late_worker_does_not_undo_what_a_person_has_resolved"
    ),
    "a running attempt can be resolved": Mutant(
        DOUBT,
        "return found.is_started and found.is_expired",
        "return True",
        "test_only_what_is_in_doubt_can_be_resolved",
    ),
    "an unknown error frees the request": Mutant(
        FLOW,
        "except self.retries.kinds as error:",
        "except Exception as error:",
        "test_every_other_error_is_in_doubt_and_not_fired_again",
    ),
    "effects are fired in an open transaction": Mutant(
        FLOW,
        "if open_guarded.is_guarded_transaction_open():",
        "if False:",
        "test_an_effect_is_refused_while_a_guarded_transaction_is_open",
    ),
    "a dead letter is tried for ever": Mutant(
        RELAY,
        "if lease.attempt < self._max_attempts:",
        "if True:",
        "test_a_safe_error_is_tried_again_later_each_time_and_ends_as_a_dead_letter",
    ),
    "a payload that cannot be read stops the relay": Mutant(
        RELAY,
        "taken = _buried(session, taken)",
        "raise",
        "test_a_payload_that_cannot_be_read_is_a_dead_letter_and_the_relay_goes_on",
    ),
    "a payload that breaks after the call has begun is a failure": Mutant(
        RELAY,
        "    if lease.is_in_doubt:\n        lease.put_in_doubt",
        "    if False:\n        lease.put_in_doubt",
        "test_a_payload_that_breaks_after_a_call_leaves_the_effect_in_doubt_under_every_policy",
    ),
}

RUNNING = {
    "a purge of one scope on SQLite walks all of it for each batch": Mutant(
        RETENTION,
        "and_(key[0] == self.scope, key[1] > after[1])",
        "and_(key[0] == self.scope, is_next)",
        "test_the_work_of_a_purge_per_row_does_not_grow",
    ),
    "a replayed batch on SQLite walks its scope": Mutant(
        SQLITE,
        "columns.request_id.in_(",
        '(columns.request_id + "").in_(',
        "test_the_work_for_an_id_grows_with_neither_the_batch_nor_the_table",
    ),
    "each completion on SQLite walks its scope": Mutant(
        SQLITE,
        ".where(*self._owned, columns.status",
        '.where(self._owned[0], columns.request_id + "" == bindparam("key_request_id"), self._owned[2], columns.status',
        "test_the_work_for_an_id_grows_with_neither_the_batch_nor_the_table",
    ),
    "a purge waits for locked rows": Mutant(
        RETENTION,
        ".with_for_update(skip_locked=True)",
        ".with_for_update()",
        "test_a_locked_row_is_left_for_the_next_time",
    ),
    "a purge drops what has not ended": Mutant(
        RETENTION, "return and_(has_ended, func", "return and_(func", "test_what_has_not_ended_stays_however_old"
    ),
    "a purge takes the young as well": Mutant(
        RETENTION,
        "< cutoff)",
        "< cutoff + self.older_than)",
        "test_old_receipts_become_tombstones_and_their_requests_are_not_executed_again",
    ),
    "a purge deletes its tombstones": Mutant(
        RETENTION,
        "if self.tombstone:",
        "if False:",
        "test_old_receipts_become_tombstones_and_their_requests_are_not_executed_again",
    ),
    "a purge of minutes is not refused": Mutant(
        RETENTION, "and not is_short_allowed", "and False", "test_less_than_a_day_is_refused_before_any_sql"
    ),
    "40001 is not worth another attempt": Mutant(
        SERVER,
        '_TRANSIENT = {"40001", "40P01", ',
        "_TRANSIENT = {",
        "test_a_serialization_failure_is_retried_until_it_passes",
    ),
    "a lost connection is not run again": Mutant(
        DIALECTS,
        "error.connection_invalidated or any(",
        "any(",
        "test_a_connection_that_is_lost_in_the_function_is_replaced",
    ),
    "attempts are not bounded": Mutant(
        RUN,
        "or (counts and self._left == 0) or",
        "or",
        "test_attempts_are_bounded_and_the_last_error_is_the_databases_own",
    ),
}

CANONICAL, MAPPED = "_request/canonical.py", "_request/mapped.py"

VALUES = {
    "a field with its default value counts": Mutant(
        CANONICAL,
        "        if text != default.text:",
        "        if True:",
        "test_a_default_value_that_is_spelt_out_does_not_count",
    ),
    "a default is found by Python's equality": Mutant(
        CANONICAL,
        "        if item is default.value or item is MISSING",
        "        if item == default.value or item is MISSING",
        "test_true_is_not_the_default_1",
    ),
    "a value of the day counts although nothing was sent": Mutant(
        CANONICAL,
        "(is_of_the_day and sent is not None and name not in sent)",
        "False",
        "test_a_value_of_the_day_counts_only_where_it_was_sent",
    ),
    "a value of the day never counts": Mutant(
        CANONICAL,
        "(is_of_the_day and sent is not None and name not in sent)",
        "is_of_the_day",
        "test_a_value_of_the_day_counts_only_where_it_was_sent",
    ),
    "two kinds of a tagged union are one payload": Mutant(
        CANONICAL,
        "if get_origin(annotation) is Literal and len(get_args(annotation)) == 1:",
        "if False:",
        "test_the_tag_of_a_union_counts",
    ),
    "datetimes are compared as they are written": Mutant(
        CANONICAL,
        "    if value.utcoffset() is not None:",
        "    if False:",
        "test_aware_datetimes_are_equal_by_instant",
    ),
    "sets have an order": Mutant(
        CANONICAL,
        "return f\"set[{','.join(sorted({text_of(item, depth - 1) for item in value}))}]\"",
        "return f\"set[{','.join([text_of(item, depth - 1) for item in value])}]\"",
        "test_sets_have_no_order test_every_payload_has_this_canonical_form",
    ),
    "large amounts are rounded before they are compared": Mutant(
        "_request/numbers.py",
        "sign, digits, exponent = value.as_tuple()",
        "sign, digits, exponent = value.normalize().as_tuple()",
        "test_every_payload_has_this_canonical_form",
    ),
    "all secrets are one payload": Mutant(
        CANONICAL,
        'if hasattr(kind, "get_secret_value"):',
        "if False:",
        "test_a_secret_is_compared_and_never_shown",
    ),
    "the second of two keys that are one text is dropped": Mutant(
        CANONICAL,
        "            if name in items:",
        "            if False:",
        "test_payloads_without_a_canonical_form_are_refused_with_their_place",
    ),
    "a parameter with its default value counts": Mutant(
        "_request/signature.py",
        "if name not in defaults or not defaults[name].is_value_of(arguments[name])",
        "if True",
        "test_all_arguments_but_the_session_are_the_payload test_a_deploy_that_adds_a_parameter_with_a_default_makes_no_conflict",
    ),
    "a bool is an id": Mutant(
        "_request/ids.py",
        "isinstance(value, int) and not isinstance(value, bool)",
        "isinstance(value, int)",
        "test_bad_words_are_refused_by_name",
    ),
    "two ids of a batch that are one text are one request": Mutant(
        BATCH,
        "        if key.request_id in requests:",
        "        if False:",
        "test_two_ids_of_a_batch_that_are_one_text_are_refused_by_name",
    ),
    "a mapped class is a result type": Mutant(
        MAPPED,
        "            if is_wanted(each):\n                return each",
        "            if False:\n                return each",
        "test_a_result_type_with_a_mapped_class_is_refused_before_any_sql",
    ),
    "a mapped instance comes back as another value": Mutant(
        RESULTS,
        "if has_equality else mapped_value_in(value) is None",
        "if has_equality else True",
        "test_a_mapped_instance_is_no_result_whatever_holds_it",
    ),
    "a result that cannot be stored is the client's fault": Mutant(
        "errors.py",
        "class InvalidResultError(MisuseError, ValueError):",
        "class InvalidResultError(InvalidInputError):",
        "test_a_result_that_cannot_be_stored_is_a_mistake_in_the_code_and_not_in_the_request",
    ),
    "an effect whose result cannot be stored says that nothing was sent": Mutant(
        FLOW,
        ", consequence=_HAPPENED)",
        ")",
        "test_a_result_that_cannot_be_stored_is_in_doubt",
    ),
    "nothing is kept of a result that cannot be stored": Mutant(
        FLOW,
        '{"not_stored": kept(value)}',
        "{}",
        "test_a_result_that_cannot_be_stored_is_in_doubt",
    ),
    "a note that is too large is lost": Mutant(
        "_request/json_text.py",
        '    return _dump(details_of(details) | {"history": [*history(details), note]})',
        '    return encode(details_of(details) | {"history": [*history(details), note]}, max_bytes=256 * 1024)',
        "test_a_note_is_never_refused_whatever_was_noted_before",
    ),
}

AROUND = {
    "a factory is taken for a global session": Mutant(
        "_request/decorator.py",
        "    if not is_one_of(type(session), ASYNC_SESSIONS if is_async else SYNC_SESSIONS):",
        "    if False:",
        "test_what_is_no_global_session_is_refused_where_the_function_is_decorated",
    ),
    "a global session is asked for once": Mutant(
        "_request/decorator.py",
        "        given = session_factory if session is None else session",
        '        given = session_factory if session is None else getattr(session, "registry", lambda: session)()',
        "test_a_global_session_is_used_by_a_function_that_takes_none",
    ),
    "a conflict of payloads names no remedy": Mutant(
        OUTCOME,
        'if differs == "payload":',
        "if False:",
        "test_a_conflict_of_payloads_says_how_to_name_the_fields_that_matter",
    ),
}

SHORT_WAY = {
    f"a claim goes past {what}": Mutant(READY, old, new, tests)
    for what, old, new, tests in (
        (
            "a listener of the engine",
            "(heard._has_events or heard.engine._has_events)",
            "heard._has_events",
            "test_a_listener_of_the_engine_sees_both test_a_listener_that_comes_later_sees_both",
        ),
        (
            "a listener of the connection",
            "(heard._has_events or heard.engine._has_events)",
            "heard.engine._has_events",
            "test_a_listener_of_the_one_connection_sees_both",
        ),
        (
            "a listener of the dialect",
            "            or (heard.dialect._has_events and _has_any(heard.dialect, _ON_DIALECTS))  # noqa: SLF001\n",
            "",
            "test_a_listener_of_the_engine_sees_both",
        ),
        ("the log", "            or heard._echo  # noqa: SLF001\n", "", "test_the_log_shows_both"),
        (
            "a transaction that has ended",
            "            or transaction is None\n            or not transaction.is_active\n",
            "",
            "test_a_transaction_that_the_connection_has_ended_is_followed_by_another_one",
        ),
        (
            "a block of a transaction that has ended",
            "            or (heard._trans_context_manager or transaction) is not transaction  # noqa: SLF001 - `with begin_nested():`\n",
            "",
            "test_a_savepoint_that_the_connection_has_ended_is_not_claimed_in",
        ),
        (
            "a wrapper of the dialect's step",
            "            dialect.do_execute(cursor, sql, values)\n",
            "            cursor.execute(sql, values)\n",
            "test_a_wrapper_around_do_execute_sees_both",
        ),
    )
} | {
    "without what SQLAlchemy hides no claim works": Mutant(
        READY,
        "    except AttributeError:\n        return False\n",
        "    except ZeroDivisionError:\n        return False\n",
        "test_without_it_everything_goes_the_long_way",
    ),
    "the short way is never gone": Mutant(
        READY,
        "        unheard = not (\n",
        "        unheard = False and not (\n",
        "test_where_nothing_listens_a_claim_and_a_completion_go_the_short_way",
    ),
    "the error of a wrapper is taken for the database's": Mutant(
        READY,
        "statement = sql if isinstance(error, connection.dialect.loaded_dbapi.Error) else None",
        "statement = sql",
        "test_what_a_wrapper_raises_is_raised_as_it_is",
    ),
    "a cancelled task leaves a connection that is used again": Mutant(
        READY,
        "        except BaseException as error:  #",
        "        except Exception as error:  #",
        "test_a_cancelled_task_leaves_no_connection_that_waits_for_an_answer",
    ),
    "times depend on the session's time zone": Mutant(
        ANSWERS,
        "    if isinstance(column.type, DateTime):\n",
        "    if False:\n",
        "test_times_are_the_same_whatever_the_session_shows",
    ),
}

BLOCKS = {
    f"{what}, and its savepoint goes on": Mutant(
        BLOCK, old, new, "test_a_block_that_ends_badly_ends_its_own_savepoint_and_no_other"
    )
    for what, old, new in (
        (
            "a block has no result",
            "                self._savepoint.__exit__(type(failure), failure, failure.__traceback__)\n",
            "                pass\n",
        ),
        (
            "a block has failed",
            "self._savepoint.__exit__(kind, error, trace)",
            "self._savepoint.__exit__(None, None, None)",
        ),
        (
            "a claim is refused",
            "        with ExitStack() as until_claimed:\n",
            "        until_claimed = ExitStack()\n        if True:\n",
        ),
    )
} | {
    "a savepoint ends before its block": Mutant(
        BLOCK,
        "            until_claimed.pop_all()\n",
        "",
        "test_a_block_that_ends_badly_ends_its_own_savepoint_and_no_other",
    ),
    "a block that has failed may be committed": Mutant(
        BLOCK,
        "                complete.abandon(self._claim)",
        "                pass",
        "test_commit_is_refused_after_an_exception_that_was_caught_outside_the_block",
    ),
}

EQUAL_VALUES = {
    "equal values make two ids": Mutant(
        "_request/template.py",
        "text = format(value, spec) if spec else _same_text(value)",
        "text = format(value, spec) if spec else str(value)",
        "test_a_template_takes_values_whose_text_names_them",
    ),
}

AGENTS = "integrations/agents/"

TOOLS_OF_AGENTS = {
    "a replay is an error to the model": Mutant(
        AGENTS + "_answers.py",
        "return self.status not in (AnswerStatus.EXECUTED, AnswerStatus.REPLAYED)",
        "return self.status is not AnswerStatus.EXECUTED",
        "test_a_replay_is_no_error_to_the_model",
    ),
    "a purged request is called done": Mutant(
        AGENTS + "_answers.py",
        "ReceiptUnreadableError), AnswerStatus.NO_RECEIPT, _without_receipt)",
        "ReceiptUnreadableError), AnswerStatus.REPLAYED, _without_receipt)",
        "test_no_purged_request_is_called_done_whatever_it_was",
    ),
    "the context of a framework is a part of the payload": Mutant(
        AGENTS + "_tools.py",
        "ignore={*filled_in(fn), *ignore},",
        "ignore=ignore,",
        "test_the_context_names_scope_and_key_whatever_the_tool_calls_it_and_is_no_payload",
    ),
    "a key for each call is accepted": Mutant(
        AGENTS + "_keys.py",
        '        if why is not None:\n            raise ValueError(f"request_id is made of',
        '        if False:\n            raise ValueError(f"request_id is made of',
        "test_a_key_that_each_attempt_makes_for_itself_is_refused_at_the_decoration",
    ),
    "a tool without a scope is accepted": Mutant(
        AGENTS + "_keys.py",
        'if scope is None or scope == "":',
        "if False:",
        "test_a_missing_scope_is_refused_at_the_decoration",
    ),
    "a conflict hides the earlier receipt": Mutant(
        AGENTS + "_calls.py",
        "return with_receipt(answer, receipt)",
        "return answer",
        "test_other_arguments_are_a_conflict_that_shows_the_earlier_receipt",
    ),
    "an error of another request answers the call of a tool": Mutant(
        AGENTS + "_calls.py",
        "if not is_about_this or any(error is each for each in self._raised):",
        "if False:",
        "test_an_error_of_another_request_in_the_body_is_no_answer_to_the_call",
    ),
    "the receipt of another action is shown": Mutant(
        AGENTS + "_calls.py",
        'or error.differs == "action":',
        "or False:",
        "test_a_conflict_with_another_action_shows_no_receipt",
    ),
    "a request of another tool is a verdict": Mutant(
        "_claim/block.py",
        "if stored is None or stored.action != (action or stored.action):",
        "if stored is None:",
        "test_a_request_of_another_tool_is_no_verdict_and_no_commit",
    ),
    "a caller can name any request of its scope": Mutant(
        AGENTS + "_keys.py",
        'return f"{_FROM_CALLER}{key}"',
        "return key",
        "test_a_key_of_the_caller_is_no_other_id_and_another_one_for_each_action",
    ),
    "an id of a call passes for one of the business": Mutant(
        AGENTS + "_keys.py",
        "is_of_the_business = not reads_context and shown.issuperset(parameters)",
        "is_of_the_business = True",
        "test_a_key_of_the_context_is_refused_beside_one_of_the_business",
    ),
    "an effect in doubt is repeated without a question": Mutant(
        AGENTS + "_calls.py",
        "return not (is_effect and guard.terms.takes_over_doubt)",
        "return True",
        "test_a_person_is_asked_again_before_an_effect_in_doubt_is_executed_again",
    ),
    "an error of another request answers a commit": Mutant(
        AGENTS + "_calls.py",
        "            self.refuse_from_inside(error)\n",
        "            pass\n",
        "test_an_error_of_another_request_in_a_commit_is_no_answer_to_it",
    ),
    "a model names the scope": Mutant(
        AGENTS + "_keys.py",
        "    if guessed:\n",
        "    if False:\n",
        "test_a_scope_that_the_model_fills_in_is_refused_at_the_decoration",
    ),
    "what puts a call off makes doubt": Mutant(
        "_effects/flow.py",
        "except self.retries.kinds as error:",
        "except self.retries.on as error:",
        "test_a_call_that_the_framework_puts_off_leaves_nothing_and_comes_again",
    ),
    "a call that is put off forgets the doubt of an earlier one": Mutant(
        "_effects/lease.py",
        "        if self.is_in_doubt:\n            self.release(session, error)\n",
        "        if False:\n            self.release(session, error)\n",
        "test_a_call_that_is_put_off_keeps_the_doubt_of_an_earlier_attempt",
    ),
    "a purged intent is tried again": Mutant(
        AGENTS + "_intents.py",
        "        if intent.is_purged:",
        "        if False:",
        "test_a_purged_intent_in_doubt_is_not_tried_again_with_other_arguments",
    ),
    "a deploy changes what was approved": Mutant(
        AGENTS + "_intents.py",
        'result={"arguments": whole}',
        'result={"arguments": plain}',
        "test_the_defaults_of_the_function_are_approved_with_the_arguments",
    ),
    "a cancelled caller cancels its effect": Mutant(
        AGENTS + "_shield.py",
        "return await asyncio.shield(task)",
        "return await task",
        "test_the_outcome_of_an_effect_is_recorded_although_its_caller_is_gone",
    ),
    "a running effect is answered at once": Mutant(
        AGENTS + "_calls.py",
        "or time.monotonic() + pause > until:",
        "or True:",
        "test_a_call_waits_inside_the_tool_for_the_outcome_of_an_effect",
    ),
    "an intent is committed without its approval": Mutant(
        AGENTS + "_intents.py",
        "if not (intent.verdict or intent.is_committed):",
        "if False:",
        "test_an_intent_is_committed_once_after_its_approval",
    ),
    "the intents of all scopes have one handle": Mutant(
        AGENTS + "_intents.py",
        "canonical_json([key.scope, self._action, key.request_id, plain])",
        "canonical_json([self._action, key.request_id, plain])",
        "test_the_same_intent_has_the_same_handle_and_another_one_another",
    ),
    "a failed call is remembered as a repetition": Mutant(
        AGENTS + "_repeats.py",
        "        seconds = time.monotonic() - at",
        "        self.remember(mark, request_id)\n        seconds = time.monotonic() - at",
        "test_a_call_that_failed_is_no_reason_to_refuse_the_next_one",
    ),
    "a keyword that the function does not have is taken": Mutant(
        SIGNATURE,
        "if len(every) == len(self._defaults) + len(self._required):",
        "if True:",
        "test_an_unknown_keyword_is_the_type_error_of_a_plain_call",
    ),
}

QUEUES = {
    "a refusal is a dead letter": Mutant(
        MESSAGES,
        "    Kind.REFUSED: Disposition.ACKNOWLEDGE,\n",
        "",
        "test_a_refusal_is_the_stored_answer_and_is_acknowledged",
    ),
    "a failover makes dead letters": Mutant(
        MESSAGES,
        "*((each, Kind.MISUSE) for each in _DECIDED_BY_THE_CODE),",
        "(MisuseError, Kind.MISUSE),",
        "test_a_server_that_cannot_write_is_raised_for_the_normal_retry",
    ),
    "an error of the function is taken for the guard's": Mutant(
        MESSAGES,
        "if is_own or (",
        "if (",
        "test_an_error_of_the_guard_that_the_function_raises_is_its_own",
    ),
    "a message in doubt is acknowledged": Mutant(
        MESSAGES,
        "Kind.IN_DOUBT: Disposition.PARK,",
        "Kind.IN_DOUBT: Disposition.ACKNOWLEDGE,",
        "test_a_message_in_doubt_is_parked_with_the_words_for_a_person",
    ),
    "a delivery beside a running one is acknowledged": Mutant(
        MESSAGES,
        "Kind.IN_PROGRESS: Disposition.COME_AGAIN,",
        "Kind.IN_PROGRESS: Disposition.ACKNOWLEDGE,",
        "test_a_delivery_beside_a_running_one_comes_again_and_holds_no_connection",
    ),
    "an effect that retries is parked": Mutant(
        MESSAGES,
        " or not guard.terms.takes_over_doubt",
        " or True",
        "test_an_effect_that_parks_is_parked_and_one_that_retries_is_raised",
    ),
    "two tasks share the id of a message": Mutant(
        TASKS,
        'return f"{self.task}:{self.id}"',
        "return str(self.id)",
        "test_a_message_is_named_by_its_task_and_its_id",
    ),
    "bad input is raised into the queue's retry": Mutant(
        TASKS,
        "except InvalidInputError as error:\n            return outcome_of(error, message.name)\n\n        asked: list[Exception] = []\n\n        def fn(",
        "except ZeroDivisionError as error:\n            return outcome_of(error, message.name)\n\n        asked: list[Exception] = []\n\n        def fn(",
        "test_a_message_without_a_good_id_is_bad_input",
    ),
    "a message that an effect's function asks for is lost in doubt": Mutant(
        TASKS,
        "return again if behind is None or",
        "return ZeroDivisionError() if behind is None or",
        "test_a_function_of_an_effect_may_ask_for_its_message_again",
    ),
    "what a framework supplies is a part of the payload": Mutant(
        TASKS,
        "ignore=self.filled_in,",
        "ignore=(),",
        "test_what_a_framework_supplies_is_no_part_of_the_payload",
    ),
}

WEB = {
    "a response leaves although its session has not committed": Mutant(
        FASTAPI_BLOCK,
        "if not self._block.is_committed:",
        "if False:",
        "test_a_session_that_ends_without_a_commit_gives_no_answer_but_500",
    ),
    "a response leaves at the COMMIT of another transaction": Mutant(
        "integrations/_awaited_commit.py",
        "session.get_transaction() is not awaited.root or ",
        "",
        "test_the_commit_of_another_transaction_sends_no_answer",
    ),
    "a response leaves although the joined transaction has rolled back": Mutant(
        "integrations/_awaited_commit.py",
        "        awaited.is_seen = False",
        "        pass",
        "test_a_joined_transaction_that_rolls_back_sends_no_answer",
    ),
    "a response of 5xx is stored": Mutant(
        FASTAPI_BLOCK,
        "below=500",
        "below=600",
        "test_a_request_that_fails_leaves_its_key_free",
    ),
    "a replay commits what dependencies have written": Mutant(
        FASTAPI_BLOCK,
        "if self._is_undone:",
        "if False:",
        "test_a_replay_commits_nothing_of_what_dependencies_write",
    ),
    "a session that commits after the response is taken": Mutant(
        "integrations/_fastapi_checks.py",
        'if use.scope != "function" or not use.use_cache:',
        "if not use.use_cache:",
        "test_a_session_that_would_commit_after_the_response_is_refused_when_the_route_is_made",
    ),
    "a policy that guards nothing is taken": Mutant(
        "integrations/_fastapi_checks.py",
        "if isinstance(own, HttpPolicy) and not methods & own.methods:",
        "if False:",
        "test_a_choice_that_would_have_no_effect_is_refused",
    ),
    "the scope's session counts as the endpoint's": Mutant(
        "integrations/_fastapi_checks.py",
        "if outside is None or each.call is not outside:",
        "if True:",
        "test_the_session_of_the_scope_is_not_the_endpoints",
    ),
    "the dependencies of an include are not checked": Mutant(
        FASTAPI,
        "refuse_late_commits(effective(self).dependant,",
        "refuse_late_commits(self.dependant,",
        "test_dependencies_from_outside_of_the_route_are_checked",
    ),
    "an endpoint without the claim's session is taken": Mutant(
        "integrations/_fastapi_checks.py",
        "if not any(True for _ in _uses(dependant, session, outside=claim)):",
        "if False:",
        "test_an_endpoint_with_another_session_is_refused_unless_it_says_how_it_gets_it",
    ),
    "a request without a principal is claimed": Mutant(
        HTTP, 'if scope is None or scope == "":', "if False:", "test_a_principal_is_required"
    ),
    "the query is not compared": Mutant(
        HTTP,
        'where = {"path": path, "query": query}',
        'where = {"path": path}',
        "test_json_is_compared_by_meaning_and_everything_else_by_its_bytes",
    ),
    "cookies are replayed": Mutant(
        "integrations/_http_response.py",
        '| {"location",',
        '| {"set-cookie", "location",',
        "test_a_stored_response_comes_back_byte_for_byte_with_the_headers_that_may_be_repeated",
    ),
    "the last of several keys is taken": Mutant(
        "integrations/_keys.py", "if len(values) > 1:", "if False:", "test_one_header_is_a_key_and_two_are_not"
    ),
    "the transaction of a view is not committed": Mutant(
        "integrations/_owned_transaction.py", "        session.commit()\n", "", "test_flask.py test_wsgi.py"
    ),
    "the transaction of an ASGI app is not committed": Mutant(
        ASGI,
        "            await self.leave(None)\n            await self._session.commit()\n",
        "            await self.leave(None)\n",
        "test_asgi.py",
    ),
    "what an ASGI app may have raised is committed": Mutant(
        ASGI,
        "response, below=400)",
        "response, below=500)",
        "test_a_response_of_400_or_more_rolls_back_since_it_may_have_been_raised",
    ),
    "a refusal of 422 rolls back like any other response": Mutant(
        HTTP,
        "if execution is not None and execution.is_refused:",
        "if False:",
        "test_every_web_adapter_keeps_the_rows_of_a_refusal_and_answers_it_alike",
    ),
    "a refusal that a framework has answered with 500 stays one": Mutant(
        ASGI,
        "return handled if status == _UNKNOWN",
        "return handled if False",
        "test_every_web_adapter_keeps_the_rows_of_a_refusal_and_answers_it_alike",
    ),
    "a session that outlives its requests holds one": Mutant(
        "integrations/_awaited_commit.py",
        "self.session.info[_KEY] = None",
        "pass",
        "test_a_session_that_outlives_requests_is_listened_to_once_and_holds_none_of_them",
    ),
    "an infinite moment is read as it is": Mutant(
        "_dialects/moments.py",
        "return finite_text(compiler.process(element.clauses, **options))",
        "return compiler.process(element.clauses, **options)",
        "test_moments_without_an_end_are_shown_and_spoil_no_page",
    ),
    "every signature is valid": Mutant(
        PROVIDERS, "hmac.compare_digest(one, other)", "True", "test_no_body_makes_another_error_than_those_of_a_webhook"
    ),
    "old signatures are valid": Mutant(
        PROVIDERS,
        "if time.time() - seconds > self._tolerance:",
        "if False:",
        "test_old_signatures_are_refused",
    ),
    "GitHub's body is not compared": Mutant(
        PROVIDERS,
        "_event(content), digest)",
        "_event(content))",
        "test_an_id_of_github_with_another_body_is_422_and_another_hook_is_another_event",
    ),
    "the hooks of GitHub share ids": Mutant(
        PROVIDERS,
        'f"{self.name}/{hook}" if hook else self.name',
        "self.name",
        "test_an_id_of_github_with_another_body_is_422_and_another_hook_is_another_event",
    ),
    "an event whose receipt was purged is no success": Mutant(
        WEBHOOKS,
        "(ReceiptExpiredError, ReceiptUnreadableError)",
        "ReceiptUnreadableError",
        "test_an_event_whose_receipt_was_purged_is_200_and_not_handled_again",
    ),
    "a handler's error of the guard is an answer": Mutant(
        WEBHOOKS,
        "if error is self._raised:",
        "if False:",
        "test_an_error_of_the_guard_in_a_handler_is_the_handlers_and_no_answer",
    ),
    "a body that was cut off is executed": Mutant(
        "integrations/wsgi.py",
        "    if length and len(body) < int(length):",
        "    if False:",
        "test_a_body_that_was_cut_off_is_400_and_executes_nothing",
    ),
    "a response is stored as one request has had it compressed": Mutant(
        "integrations/asgi.py",
        'if name.lower() != b"accept-encoding"',
        "",
        "test_what_is_stored_is_compressed_for_no_request",
    ),
    "a request without a key is answered before its COMMIT": Mutant(
        ASGI,
        """                self._status = message["status"]
                await self.end()
""",
        """                self._status = message["status"]
""",
        "test_without_a_key_everything_passes_as_without_the_guard test_a_failed_commit_is_not_answered_with_a_second_success",
    ),
    "an event whose handler has not run is acknowledged": Mutant(
        "integrations/_webhook_handlers.py",
        "if not any(is_kind(returned) for is_kind in kinds):",
        "if True:",
        "test_an_event_whose_handler_has_not_run_is_never_acknowledged",
    ),
    "handlers share the payload of an event": Mutant(
        "integrations/_webhook_handlers.py",
        "payload=copy.deepcopy(delivery.payload)",
        "payload=delivery.payload",
        "test_each_handler_and_each_attempt_gets_the_payload_as_it_was_sent",
    ),
    "another URL is sent under the key": Mutant(
        "integrations/_outgoing.py",
        '{_place(url)}\\n".encode()',
        '\\n".encode()',
        "test_two_urls_are_two_calls",
    ),
    "other bytes are sent under the key": Mutant(
        "integrations/_outgoing.py",
        "if known not in (None, digest):",
        "if False:",
        "test_other_bytes_under_the_key_are_refused_on_a_later_attempt_and_not_sent",
    ),
    "what was sent is forgotten": Mutant(
        FLOW,
        "lease = lease._replace(details=context._noted.details)",
        "lease = lease._replace()",
        "test_what_was_sent_is_remembered_when_the_result_cannot_be_stored",
    ),
    "claims belong to threads": Mutant(
        "_transaction/open_guarded.py",
        "return _thread.place if place is None else place",
        "return _thread.place",
        "test_a_claim_belongs_to_the_request_that_made_it_and_not_to_its_thread",
    ),
}

# Each breaks a promise to the people who look after a guard.
DASHBOARD = {
    f"dashboard: {what}": Mutant(file, old, new, tests)
    for what, file, old, new, tests in (
        (
            "each page is shown to each visitor",
            "dashboard/_app.py",
            "if not await self._access.may_look(request):",
            "if False:",
            "test_without_an_answer_of_the_app_every_page_is_refused",
        ),
        (
            "a form is taken from every site",
            "dashboard/_access.py",
            'return site == "same-origin"',
            "return True",
            "test_a_form_is_taken_from_this_dashboard_alone",
        ),
        (
            "a form without any origin is taken",
            "dashboard/_access.py",
            "        if origin is None:\n            return False\n",
            "        if origin is None:\n            return True\n",
            "test_a_form_is_taken_from_this_dashboard_alone",
        ),
        (
            "who may look may resolve",
            "dashboard/_app.py",
            "if visitor.resolver is None or not visitor.may_see(form.key.scope):",
            "if not visitor.may_see(form.key.scope):",
            "test_who_may_look_may_neither_resolve_nor_reveal",
        ),
        (
            "a result is shown without an event",
            "dashboard/_app.py",
            "        tell(self._settings.listeners, event)\n",
            "",
            "test_a_result_is_shown_to_those_who_may_and_that_is_an_event",
        ),
        (
            "rows are markup",
            "dashboard/_app.py",
            "autoescape=True",
            "autoescape=False",
            "test_hostile_rows_are_text_and_their_links_work",
        ),
        (
            "a list has the scopes of others",
            "dashboard/_reads.py",
            "return () if scopes is None else",
            "return () if True else",
            "test_a_person_sees_only_the_scopes_that_the_app_allows",
        ),
        (
            "a page may write",
            "dashboard/_database.py",
            "set_config('transaction_read_only', 'on', true)",
            "set_config('transaction_read_only', 'off', true)",
            "test_the_transactions_of_the_dashboard_cannot_write",
        ),
        (
            "a statement may last",
            "dashboard/_database.py",
            "set_config('statement_timeout', :statement, true)",
            "CAST(:statement AS text)",
            "test_a_part_that_fails_says_why_and_the_others_stay",
        ),
        (
            "open tabs share nothing",
            "dashboard/_database.py",
            "        if part.fresh:\n",
            "        if False:\n",
            "test_open_tabs_share_answers_and_one_connection",
        ),
        (
            "the second person is not answered",
            "dashboard/_verdicts.py",
            'if latest is None or (latest["by"], latest["evidence"]) != (by, form.evidence):',
            "if latest is None:",
            "test_the_second_person_reads_who_resolved_it_and_how",
        ),
        (
            "a verdict needs no evidence",
            "dashboard/_verdicts.py",
            "        if not any(each.isprintable() and not each.isspace() for each in self.evidence):\n",
            "        if False:\n",
            "test_a_verdict_that_is_not_complete_is_answered_with_a_sentence",
        ),
        (
            "the sample is the table",
            "_inspection/estimates.py",
            "percent = min(100.0, 100.0 * PAGES / max(pages, 1))",
            "percent = 100.0",
            "test_no_page_of_the_dashboard_reads_the_whole_table",
        ),
        (
            "the dead letters are searched everywhere",
            "dashboard/_reads.py",
            "*is_dead, columns.lease_expires_at.is_(None), *self._of(scopes)",
            "is_dead[1], *self._of(scopes)",
            "test_no_page_of_the_dashboard_reads_the_whole_table",
        ),
        (
            "the command answers every name",
            "cli/_dashboard.py",
            'allowed_hosts=[_HOST, "localhost"]',
            'allowed_hosts=["*"]',
            "test_it_is_read_only_and_answers_its_own_names_alone",
        ),
    )
}

SECRETS = {
    "a batch stores its results past the type of their column": Mutant(
        SQL,
        'given = (array(f"{name}s", type_) for name, type_ in types.items())',
        'given = (array(f"{name}s") for name, type_ in types.items())',
        "test_no_clear_text_lies_in_the_table",
    ),
    "the type of the contents is not taken": Mutant(
        "models.py",
        "    if contents is not None:",
        "    if contents == 0:",
        "test_no_clear_text_lies_in_the_table",
    ),
    "the error about a probe quotes what it has returned": Mutant(
        FLOW,
        '                    f"{type(verdict).__qualname__}"',
        '                    f"{verdict!r}"',
        "test_nothing_that_is_captured_holds_a_secret",
    ),
    "an error shows what a function is bound to": Mutant(
        "_request/functions.py",
        "    while isinstance(fn, partial):",
        "    if isinstance(fn, partial):\n        return repr(fn)\n    while isinstance(fn, partial):",
        "test_nothing_that_is_captured_holds_a_secret",
    ),
    "a doubt shows its details": Mutant(
        DOUBT,
        "    details: Any = field(repr=False)",
        "    details: Any = field()",
        "test_nothing_that_is_captured_holds_a_secret",
    ),
    "a webhook answers with the body that was not signed": Mutant(
        PROVIDERS,
        'raise InvalidSignatureError("the webhook is not signed with any of the secrets")',
        'raise InvalidSignatureError(f"the webhook is not signed with any of the secrets: {given} {keys}")',
        "test_a_webhook_with_a_bad_signature_says_nothing",
    ),
}

REPLICATION = "_inspection/replication.py"

FAILOVER = {
    "standbys that are not synchronous are well": Mutant(
        REPLICATION,
        'return Finding("standbys", "warning", f"{len(rows)}',
        'return Finding("standbys", "ok", f"{len(rows)}',
        "test_standbys_of_which_none_is_synchronous",
    ),
    "what a role cannot see is taken for a missing standby": Mutant(
        REPLICATION,
        "if rows and all(state is None for _, state in rows):",
        "if False:",
        "test_a_synchronous_standby_is_visible_to_a_role_that_may_see_it",
    ),
    "an old primary is well": Mutant(
        REPLICATION,
        "if sight.timeline == newest:",
        "if True:",
        "test_an_old_primary_is_found_by_its_timeline",
    ),
    "the newest timeline is that of the last look": Mutant(
        REPLICATION,
        "max(sight.timeline, _newest.get(sight.system_identifier, 0))",
        "sight.timeline",
        "test_an_old_primary_is_found_by_its_timeline",
    ),
    "a second primary is not looked for": Mutant(
        "cli/_servers.py",
        "if len(primaries) > 1:",
        "if False:",
        "test_an_old_primary_is_found_by_its_timeline",
    ),
}

PARTS = "schema/_partitions.py"

LARGE_TABLES = {
    "partition() takes a table with rows": Mutant(
        PARTS, "WHEN {has_rows} THEN", "WHEN false THEN", "test_what_would_get_lost_is_refused_by_name_and_offline_too"
    ),
    "row-level security is lost with the partitions": Mutant(
        PARTS,
        "WHEN c.relrowsecurity OR EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid) THEN",
        "WHEN false THEN",
        "test_what_would_get_lost_is_refused_by_name_and_offline_too",
    ),
    "grants are lost with the partitions": Mutant(
        PARTS,
        "AS granted, aclexplode(acl) WHERE pg_get_userbyid(grantee) <> owner",
        "AS granted, aclexplode(acl) WHERE false",
        "test_there_and_back_the_table_is_what_it_was",
    ),
    "triggers are lost with the partitions": Mutant(
        PARTS,
        "WHERE tgrelid = old AND NOT tgisinternal\n",
        "WHERE false\n",
        "test_there_and_back_the_table_is_what_it_was test_the_commit_check_works_on_every_partition",
    ),
    "partitions have no settings": Mutant(
        PARTS,
        "command, made, number, settings",
        "command, made, number, ''",
        "test_there_and_back_the_table_is_what_it_was",
    ),
    "the way back forgets the rows": Mutant(
        PARTS,
        "    EXECUTE format('INSERT INTO %s SELECT * FROM %s', made, aside);\n",
        "",
        "test_the_way_back_keeps_every_row",
    ),
    "a partitioned table has no pages": Mutant(
        "_inspection/estimates.py",
        "pages = sum(leaf.pages for leaf in parts)",
        "pages = 0",
        "test_the_dashboard_and_the_doctor_read_a_sample_of_the_partitions",
    ),
    "a walk ends with the shortest partition": Mutant(
        "_inspection/stretches.py",
        "end = max((leaf.pages for leaf in parts), default=0)",
        "end = min((leaf.pages for leaf in parts), default=0)",
        "test_a_walk_sees_each_row_once_and_the_newest_first",
    ),
    "distribute() goes on without Citus": Mutant(
        "schema/_distribution.py",
        "if not context.connection.scalar(sa.text(_IS_CITUS)):",
        "if False:",
        "test_without_citus_it_is_refused_by_name_and_the_transaction_goes_on",
    ),
}

MUTANTS = {
    **DASHBOARD,
    **SECRETS,
    **QUEUES,
    **SHORT_WAY,
    **BLOCKS,
    **CLAIMING,
    **WAITING,
    **COMPLETING,
    **LAST_WORD,
    **SPLIT_READS,
    **AS_TEXT,
    **ENGINES,
    **STANDBY,
    **FAILOVER,
    **PIPELINES,
    **BATCHES,
    **WORDS,
    **STORED,
    **VALUES,
    **EFFECTS,
    **RUNNING,
    **AROUND,
    **EQUAL_VALUES,
    **TOOLS_OF_AGENTS,
    **WEB,
    **LARGE_TABLES,
}
