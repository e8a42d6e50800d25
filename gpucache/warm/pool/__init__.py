"""Compiles many recipes at once, in processes that are started, limited and killed here."""
