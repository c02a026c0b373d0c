"""Configuration files, and detectors as plain values."""
