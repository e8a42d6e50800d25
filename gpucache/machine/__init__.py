"""Which GPUs there are and which a process sees; touches no cache."""
