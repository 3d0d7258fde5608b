"""What no transaction covers: calls of other systems, made once, or known to be in doubt.

* `flow` is the life of an effect as a generator, and `drive` runs its steps.
* `retries` says what an error of the call means: another attempt, a doubt, or a call that is put off.
* `lease` and `lease_rows` are the steps on its row; `verdict` and `doubt` settle what a crash left unknown.
* `relaying` and `notifications` are what relays share.
"""
