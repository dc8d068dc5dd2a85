"""Watching a suite that nobody adapted: the modes in which its own loops train and predict.

Nothing is run, seeded, kept alive or moved, and nothing is raised into a test. `ledger` counts what
was seen, `places` finds the user's lines, `torch` and `keras` look, and neither knows pytest.
"""
