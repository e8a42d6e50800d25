"""Entries and packs on other machines: where they lie, how they are got and put, and what goes wrong on the way."""
