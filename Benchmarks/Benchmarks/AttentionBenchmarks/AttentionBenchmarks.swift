import Benchmark
import IntFlashAttention

let benchmarks: @Sendable () -> Void = {
  Benchmark.defaultConfiguration = .init(
    metrics: [.wallClock, .throughput, .peakMemoryResident],
    timeUnits: .microseconds,
    warmupIterations: 2,
    maxDuration: .seconds(2),
    maxIterations: 100_000
  )

  // Whole calls, quantisation and packing included: every instruction set at one length, …
  for instructionSet in InstructionSet.supported {
    for precision in [Precision.int8, .int4, .bfloat16, .float32] {
      for mask in [AttentionMask.full, .causal] {
        Case(precision, length: 1024, mask: mask, instructionSet).register("attention")
      }
    }
  }
  // … and the best one from short to long.
  for precision in [Precision.int8, .int4, .int8QueryKey, .bfloat16, .float32] {
    for length in [16, 256, 4096] {
      Case(precision, length: length).register("attention")
    }
    Case(precision, heads: (32, 8), length: 4096, dimension: 128, mask: .causal)
      .register("attention")
  }
  // One query per head: nearly all of such a call is the pre-pass over keys and values.
  for precision in [Precision.int8, .int4, .bfloat16] {
    for type in [ElementType.float32, .bfloat16] {
      Case(precision, queryLength: 1, length: 4096, dimension: 128, inputType: type)
        .register("prepass")
    }
  }
}
