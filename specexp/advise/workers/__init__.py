"""The part of advise that no clock reads, on workers of Ray."""
