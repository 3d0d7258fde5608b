"""Makes something slow once per run: the first worker makes it, the others wait for it."""

import fcntl
import os


def once(tmp_path_factory, name, make):
    """Return a folder that `make` has filled, in the run's folder, which all workers share."""
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, is_made = run / name, run / f"{name}.made"
    with (run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_made.exists():
            folder.mkdir()
            make(folder)
            is_made.touch()
    return folder
