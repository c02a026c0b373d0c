"""The training engine: what to train on, the loop, and its checkpoints; see docs/design/training.md."""
