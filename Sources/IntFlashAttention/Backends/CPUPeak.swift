internal import CAttentionKernels

/// What one core could do at most: the issue rate of the instruction that a tile loop is made of.
///
/// Clocks move and machines are shared, so it has to be measured beside what it is compared with.
package enum CPUPeak {
  /// Measures one thread.
  ///
  /// - Parameters:
  ///   - descriptor: decides which instruction its tile loop is made of.
  ///   - instructionSet: where it runs.
  ///   - seconds: how long to measure; the fastest of several runs counts.
  /// - Returns: multiplications and additions per second, in billions; nil where the instruction set
  ///   has no instruction to measure, or the recipe no kernel.
  package static func measure(
    _ descriptor: AttentionDescriptor,
    on instructionSet: InstructionSet,
    seconds: Double = 0.02
  ) -> Double? {
    guard instructionSet.isSupported, let method = CPUMethod(descriptor.recipe),
      let peak = unsafe instructionSet.kernels.peak
    else { return nil }
    let kind =
      switch method {
      case .tiles, .running(.int8, .int8): INTFA_PEAK_INT8
      case .running(.int8, .float(.bfloat16, .bfloat16)),
        .running(.float(.bfloat16), .float(.bfloat16, .bfloat16)):
        // Where scores are INT8 this is the slower of two instructions.
        peak(INTFA_PEAK_BFLOAT16, 1) > 0 ? INTFA_PEAK_BFLOAT16 : INTFA_PEAK_FLOAT
      case .running: INTFA_PEAK_FLOAT
      }
    let clock = ContinuousClock()
    let end = clock.now + .seconds(seconds)
    var best = 0.0
    repeat {
      let start = clock.now
      let operations = peak(kind, 2000)
      let elapsed = (clock.now - start) / .seconds(1)
      best = max(best, Double(operations) / elapsed)
    } while clock.now < end
    return best * 1e-9
  }
}
