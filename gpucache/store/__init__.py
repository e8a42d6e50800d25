"""One whole copy of each entry: publish, find, lock, remove, bound, count."""
