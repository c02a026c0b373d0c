"""Statistics of normal images, thresholds, fingerprints."""
