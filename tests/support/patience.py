"""How long the suite waits for a process, a thread or a server."""

# Seconds. Enough for a loaded machine, and less than the limit of a test, so that the failure names what it waited for.
PATIENCE = 240
