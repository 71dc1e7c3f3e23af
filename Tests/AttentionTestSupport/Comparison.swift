public import IntFlashAttention
public import Testing

/// The largest error of any row, relative to the largest value that the row could have.
///
/// - Returns: the largest over all rows of mean |a − b| / largest |value| and the row where it is.
public func worstRow(
  _ result: [Float],
  against expected: [Float],
  dimension: Int,
  largestValue: Float
) -> (error: Double, row: Int) {
  var worst = (error: 0.0, row: 0)
  for start in stride(from: 0, to: result.count, by: dimension) {
    var sum = 0.0
    for index in start..<start + dimension {
      sum += Double((result[index] - expected[index]).magnitude)
    }
    let error = sum / Double(dimension) / Double(max(largestValue, .leastNormalMagnitude))
    // A comparison with NaN is false, which would hide it.
    if !(error <= worst.error) { worst = (error, start / dimension) }
  }
  return worst
}

extension Precision {
  /// Bound of the error of one row between a backend and the reference of the same recipe, as
  /// `worstRow` measures it.
  ///
  /// A P that rounds to the neighbouring code changes a row by at most a hundredth of a value; a
  /// tile, row or head in the wrong place changes it by a tenth and more.
  public var rowRounding: Double { max(10 * gate.rounding, 1e-5) }

  /// Bounds of the relative L1 error on the committed activations, worst layer and mean: nearer to
  /// what is measured than those of the gate, which hold for activations that nobody has seen.
  public var knownActivationsBound: (worst: Double, mean: Double) {
    switch self {
    case .int8: (0.012, 0.010)
    case .int4: (0.038, 0.028)
    case .int8QueryKey: (0.009, 0.005)
    default: (gate.worst, gate.mean)
    }
  }

  /// Bound of the relative L1 error against exact attention in any robustness case: that of normal
  /// data, and 1.5 % for `int8`.
  public var robustnessBound: Double { max(gate.normal(keyValueLength: 1024), 0.015) }

  /// Bound of the relative L1 error where all values are one number and the row sum is over codes:
  /// numerator and denominator round alike.
  public var constantBound: Double { 1e-5 }

  /// Bound of the error of a log-sum-exp against exact attention, in natural logarithm units, for
  /// logits of a few units.
  public var logSumExpBound: Float {
    switch self {
    case .float32: 1e-4
    case .float16: 0.01
    case .int8, .int8QueryKey, .bfloat16: 0.1
    case .int8Paper, .int8QueryKeyPaper: 0.3
    case .float8, .int4, .int4KeyValue, .int4QueryKey: 1
    }
  }

  /// Bound of the difference of a log-sum-exp between a backend and the reference of the same
  /// recipe: one step of 2^(1/64) where P comes from the table, the error of a short polynomial where
  /// P is rounded to 8 bits, else the rounding of float32.
  public var logSumExpRounding: Float {
    if recipe.exponential == .table64 { return 0.011 }
    return [.bfloat16, .signed8].contains(recipe.probability) ? 2e-4 : 1e-4
  }
}

/// Records an issue unless `result` is what `reference` is, up to the rounding of the recipe.
public func expectSame(
  _ result: TestResult,
  _ reference: TestResult,
  _ precision: Precision,
  _ inputs: TestInputs,
  _ comment: Comment,
  sourceLocation: SourceLocation = #_sourceLocation
) {
  let report = AccuracyReport(result.output, against: reference.output)
  #expect(
    report.relativeL1 <= precision.gate.rounding,
    "\(comment): \(precision)",
    sourceLocation: sourceLocation
  )
  expectSameRows(
    result,
    reference,
    precision,
    inputs,
    comment,
    sourceLocation: sourceLocation
  )
}

/// Records an issue unless every row of `result` is what it is in `reference`: for calls of so few rows
/// that a mean over them is one of single rows.
public func expectSameRows(
  _ result: TestResult,
  _ reference: TestResult,
  _ precision: Precision,
  _ inputs: TestInputs,
  _ comment: Comment,
  sourceLocation: SourceLocation = #_sourceLocation
) {
  let largest = inputs.value.reduce(0) { max($0, $1.magnitude) }
  let worst = worstRow(
    result.output,
    against: reference.output,
    dimension: inputs.shape.valueDimension,
    largestValue: largest
  )
  #expect(
    worst.error <= precision.rowRounding,
    "\(comment): \(precision), row \(worst.row)",
    sourceLocation: sourceLocation
  )
  for (index, (a, b)) in zip(result.logSumExp, reference.logSumExp).enumerated() {
    let bound = precision.logSumExpRounding + 1e-6 * b.magnitude
    guard a != b, !((a - b).magnitude <= bound) else { continue }
    Issue.record(
      "\(comment): \(precision), log-sum-exp \(index) is \(a), not \(b)",
      sourceLocation: sourceLocation
    )
    return
  }
}
