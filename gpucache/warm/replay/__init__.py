"""Compiles one recipe again in this process; the only room that imports Triton."""
