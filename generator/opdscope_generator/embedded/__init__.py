"""The embedded engine: a transformers model, one thread, one continuously refilled batch."""
