"""What the guard costs (`python -m benchmarks`), and a comparison with other libraries (`benchmarks.field`). Not installed."""

import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]

# The server and the proxy that counts messages come from the tests.
sys.path.insert(0, str(ROOT / "tests"))
