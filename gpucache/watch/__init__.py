"""What is seen of a cache as it changes."""
