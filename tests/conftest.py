"""Settings of the test process itself."""

import opdscope_serving

# Imported before torch, so that the servers' settings of OpenMP hold here too.
assert opdscope_serving.__doc__
