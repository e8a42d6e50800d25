"""Entries as one stream of bytes, whose statement is signed and whose reader believes nothing that the stream says."""
