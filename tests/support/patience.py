"""How long the suite waits for a process, a thread or a server that is on its way."""

# Seconds. A loaded machine may need long; less than the limit of a test, so that what was waited for is named.
PATIENCE = 240
