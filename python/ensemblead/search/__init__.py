"""Nearest neighbours: exact, by principal directions, or by FAISS."""
