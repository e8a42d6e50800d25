"""What the terminal says and asks; the only door to click and rich."""
