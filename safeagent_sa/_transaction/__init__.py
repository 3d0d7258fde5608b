"""What may commit: nothing that would store work without its receipt.

* `commit_guard` refuses a COMMIT at the last step before it, on each connection (`guarded_engine` puts it there);
  `guarded_transaction` and `open_claim` hold what must be proved there.
* `refusal_completion` completes claims with refusals, which are results of another kind.
* `session_watch` refuses early, where only a session can know; `foreign_writes` finds writes in a second database.
* `savepoints` follows the savepoints of a guarded transaction, and what their end takes from its claims.
* `lifecycle` notifies listeners of how a claim ends; `open_guarded` knows which guarded transactions are open here.
* `given_session` takes a session out of a registry, and knows the one that the registry has later.
* `session_events` adds listeners to one Session, and `caller` finds the line of the app that an error should name.
* `run` runs whole transactions, with retries.
"""
