"""Shows on any machine what gpucache saves: ranks that compile the same kernels, by stock Triton and by the plug-in."""

MOST_RANKS = 64
MOST_KERNELS = 12
"""So many `gpucache.demo.kernels` has."""
