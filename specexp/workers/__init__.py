"""Evaluations and mining on several workers: which unit of work goes to which, and what becomes of one that dies."""
