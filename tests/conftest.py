"""Settings of the test process itself."""

import os

# As in the servers: before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
