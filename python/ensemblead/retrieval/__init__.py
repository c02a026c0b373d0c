"""Embedding ensembles for image search, and indexes of images."""
