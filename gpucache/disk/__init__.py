"""Files, locks, mounts, trust: file-system work that knows no kernel."""
