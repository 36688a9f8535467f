"""How the tests compile: they compile much and compute little."""

QUICKLY = " ".join(
  (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # The newer code generator of loops takes three times as long.
    "--xla_cpu_use_fusion_emitters=false",
    # The workers keep all cores busy; threads of one would only add to it.
    "--xla_cpu_parallel_codegen_split_count=1",
  )
)
