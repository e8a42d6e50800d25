"""Why something is slow, missing or dangerous; changes nothing."""
