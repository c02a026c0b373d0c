"""What normal looks like: a coreset of patch embeddings, and the search in it."""

from ensemblead.memory.bank import MemoryBank

__all__ = ["MemoryBank"]
