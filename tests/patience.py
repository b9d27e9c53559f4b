"""How long a test waits for another process."""

# Seconds after which a process is taken for hung: a guard, many times what a slow machine with other work needs.
HUNG = 1200
