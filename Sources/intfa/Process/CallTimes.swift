import IntFlashAttention

/// Times of whole calls of one plan, of their pre-passes, and the peak of the processor meanwhile.
struct CallTimes {
  /// Seconds of a call.
  private(set) var whole = Timing()
  /// Seconds of a call until its tile loop begins; empty where the backend has no such part.
  private(set) var prepass = Timing()
  /// What all threads could do at most, in billions of operations a second; nil where the
  /// instruction set has nothing to measure.
  private(set) var peakGops: Double?

  private let plan: AttentionPlan
  /// Calls between two looks at the clock.
  private let count: Int

  /// Time between two looks at the clock: a look costs some tens of nanoseconds, so its share
  /// is below a thousandth.
  private static let shortest = 0.0002
  /// Seconds for a measurement of the peak.
  private static let peakSeconds = 0.0005

  /// Warms up.
  ///
  /// - Throws: as ``AttentionPlan/run(query:key:value:mask:alibiSlopes:sinks:into:)``.
  init(
    _ plan: AttentionPlan,
    _ operands: borrowing Operands,
    _ additions: borrowing Additions,
    into output: borrowing MutableTensorView
  ) throws(AttentionError) {
    self.plan = plan
    var once = try operands.time(plan, additions, count: 1, into: output, apart: false).whole
    // The first call makes the workspace, which is a large part of a short one.
    if once < .milliseconds(10) {
      once = try operands.time(plan, additions, count: 1, into: output, apart: false).whole
    }
    let seconds = max(once / .seconds(1), 1e-7)
    count = max(Int((Self.shortest / seconds).rounded(.up)), 1)
  }

  /// Takes one time, which is that of many calls where a call is short, and one look at the peak.
  ///
  /// - Throws: as ``AttentionPlan/run(query:key:value:mask:alibiSlopes:sinks:into:)``.
  mutating func measure(
    _ operands: borrowing Operands,
    _ additions: borrowing Additions,
    into output: borrowing MutableTensorView
  ) throws(AttentionError) {
    if count > 1 {
      let plain = try operands.time(plan, additions, count: count, into: output, apart: false)
      whole.add(plain.whole, count: count)
    }
    let staged = try operands.time(plan, additions, count: count, into: output, apart: true)
    if count == 1 { whole.add(staged.whole) }
    if let duration = staged.prepass { prepass.add(duration, count: count) }
    peakGops = plan.measurePeak(seconds: Self.peakSeconds).map { max($0, peakGops ?? 0) }
  }
}

extension Operands {
  /// Runs a plan `count` times.
  ///
  /// - Parameters:
  ///   - plan: what is run.
  ///   - additions: what there is beside.
  ///   - count: how often.
  ///   - output: where to.
  ///   - apart: whether to look at the clock inside of every call too.
  /// - Returns: what all calls took, and the parts of them before their tile loops; nil where that
  ///   was not asked for or the backend has no such part.
  /// - Throws: as ``AttentionPlan/run(query:key:value:mask:alibiSlopes:sinks:into:)``.
  func time(
    _ plan: AttentionPlan,
    _ additions: borrowing Additions,
    count: Int,
    into output: borrowing MutableTensorView,
    apart: Bool
  ) throws(AttentionError) -> (whole: Duration, prepass: Duration?) {
    // Views are made once: short calls would be measured with their making.
    let query = try query.view.operand(layout)
    let key = try key.view.operand(layout)
    let value = try value.view.operand(layout)
    let mask = additions.maskView
    let slopes = additions.slopesView
    let sinks = additions.sinksView
    var prepass: Duration?
    let start = ContinuousClock.now
    for _ in 0..<count {
      guard apart else {
        try plan.run(
          query: query,
          key: key,
          value: value,
          mask: mask,
          alibiSlopes: slopes,
          sinks: sinks,
          into: output
        )
        continue
      }
      let begin = ContinuousClock.now
      try plan.run(
        query: query,
        key: key,
        value: value,
        mask: mask,
        alibiSlopes: slopes,
        sinks: sinks,
        into: output
      ) {
        prepass = (prepass ?? .zero) + (ContinuousClock.now - begin)
      }
    }
    return (ContinuousClock.now - start, prepass)
  }
}

extension AttentionPlan {
  /// What all threads of the plan could do at most, in billions of operations a second; nil where
  /// nothing is known of the backend's instructions.
  fileprivate func measurePeak(seconds: Double) -> Double? {
    guard let instructionSet = InstructionSet(rawValue: summary.instructionSet) else { return nil }
    return CPUPeak.measure(descriptor, on: instructionSet, seconds: seconds)
      .map { $0 * Double(summary.threadCount) }
  }
}
