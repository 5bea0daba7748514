"""Compares judges of several feature sets and kinds on one label set: which differ, and what each costs."""
