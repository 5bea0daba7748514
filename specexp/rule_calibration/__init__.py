"""Calibrates acceptance rules without training on mined labels, and compares them with a judge there."""
