"""Where everything is in a root, and what names look like."""
