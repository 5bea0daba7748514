"""Drafts that read the target's hidden states: heads, which are no models by themselves."""
