"""These tests run under Triton's interpreter, in an environment of their own: `make test-kernels`."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
