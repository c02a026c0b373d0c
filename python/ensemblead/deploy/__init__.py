"""Export: a fitted detector as one graph, and its use where there is no torch."""
