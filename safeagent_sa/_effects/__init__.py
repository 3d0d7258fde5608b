"""What no transaction covers: calls of other systems, made once, or known to be in doubt.

* `flow` is the life of an effect as a generator, and `drive` runs its steps.
* `retries` names the errors of a call after which it may be made again.
* `lease` and `lease_rows` are the steps on its row; `verdict` and `doubt` settle what a crash left unknown.
* `relaying` and `notifications` are what relays share.
"""
