"""The tests of clipgguf."""
