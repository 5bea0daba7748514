"""specexp as a model of lm-evaluation-harness: its tasks, decoded by any method. `model.py` imports the harness."""
