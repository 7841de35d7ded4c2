"""What the generator and the scorer both need in order to be servers."""

import os

# Threads of torch that wait for each other must sleep, not spin: generator and scorer may share a machine, and one that
# spins takes from the other what it waits for (measured on 2 busy cores: a forward pass took 7 times as long). OpenMP
# reads this once, when torch is imported, which is why it stands here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A short spin first, since the other thread is often ready at once.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
