"""Compiles what recipes say, into the store, before a program asks for it."""
