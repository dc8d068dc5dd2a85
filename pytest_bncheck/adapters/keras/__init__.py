"""The adapter for Keras 3, on every backend."""
