"""Runs Python programs that a model wrote, with their tests, where they can do little harm."""
