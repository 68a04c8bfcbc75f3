"""A GGUF file and the checkpoint that it was made of: what it should be, and where it differs."""
