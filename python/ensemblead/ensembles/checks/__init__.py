"""The checks of `ead.check_detector`: small functions, whose docstring is the promise that they check."""
