"""Hostile input in great numbers: real checkpoints with something changed, each of which must end well or in an error.

``python -m tests.fuzz TARGET DIRECTORY --seed S --count N`` runs N inputs and prints what went wrong as JSON; input
number I of a seed is always the same, and ``--first I --count 1`` is that one alone. ``tests/test_fuzz.py`` runs all
targets.
"""
