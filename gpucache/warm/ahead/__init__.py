"""What `gpucache warm` and `run --warm` have compiled ahead of a program: which recipes, what is missing, by whom."""
