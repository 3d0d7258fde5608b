"""What may commit: nothing that would store work without its receipt.

* `commit_guard` has the last word before COMMIT, on each connection; `guarded_transaction` and `open_claim` hold what must
  be proved there.
* `session_watch` refuses early, where only a session can know; `foreign_writes` finds writes that no claim covers.
* `lifecycle` tells listeners how a claim ends; `open_guarded` knows which guarded transactions are open here.
* `run` runs whole transactions, with retries.
"""
