"""Normal embeddings to compare with: what is kept of them, and the nearest of them."""

from ensemblead.memory.bank import MemoryBank
from ensemblead.memory.coverage import Coverage
from ensemblead.memory.defects import DefectRows
from ensemblead.memory.selection import start_rows
from ensemblead.memory.state import BankState

__all__ = ["BankState", "Coverage", "DefectRows", "MemoryBank", "start_rows"]
