"""Trains EAGLE-3 heads (2503.01840): data, module, training, evaluation by position, registry."""
