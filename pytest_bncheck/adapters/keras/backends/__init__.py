"""What differs between the backends of Keras."""
