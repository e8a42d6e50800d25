"""Keep a cache small and whole: prune, clean, slim, verify --repair."""
