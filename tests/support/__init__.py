"""What several test modules stand on: trees, processes, users, real kernels, and a kill at every system call."""
