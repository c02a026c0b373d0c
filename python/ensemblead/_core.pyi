"""The compiled core. Only `ensemblead.kernels` uses it."""

# What was compiled in.
__version__: str
cuda_decision: str
compiler: str

def cuda_available() -> bool: ...
def instruction_set() -> str: ...
def openmp_threads() -> int: ...
