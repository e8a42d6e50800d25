"""Triton kernels of every kind that programs have, each with a launch of it; a package that can be copied elsewhere.

It imports Triton alone. The kinds are those of Triton's tutorials, and what was ever seen to change a kernel's key.
`every` lists the launches; each compiles what it launches on the stand-in driver of a program (`stand_in`).
"""
