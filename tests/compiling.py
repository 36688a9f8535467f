"""How the tests compile: they compile much and compute little."""

QUICKLY = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
