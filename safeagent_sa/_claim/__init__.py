"""Who may execute: from a verb to a claimed row or a replay, and from the end of the block to a completion.

* `block` enters and leaves the block of a claim; `binding` finds the session's connection for the table.
* `acquire` decides a claim, `complete` ends one, and `batch` does both for many.
* `each` gives every request of a batch a savepoint; `contain` lets services commit inside of one transaction.
* `sharding` keeps a request on one shard of a ShardedSession.
* `advice` adds what to do to a database error.
* `outcome` returns what a stored row means to a retry; `outbox` stores the effects that a relay will fire.
"""
