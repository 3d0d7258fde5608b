"""What the guard costs (`python -m benchmarks`), and what its peers get right (`benchmarks.field`); nothing is installed."""

import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]

# The server and the proxy that counts messages are the tests' own.
sys.path.insert(0, str(ROOT / "tests"))
