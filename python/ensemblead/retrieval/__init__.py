"""Image search: embeddings of one network or several, joined, trained, measured and indexed."""
