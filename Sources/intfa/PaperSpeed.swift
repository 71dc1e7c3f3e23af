import IntFlashAttention

/// The speed experiment of INT-FlashAttention: many heads, D = 64, no mask, against a 16-bit form.
struct PaperSpeed {
  let batch: Int
  let heads: Int
  let secondsPerLength: Double
  let options: AttentionOptions
  let seed: UInt64
  let backend: CPUBackend

  /// Our recipe, the paper's, and what both are compared with.
  private static let precisions = [Precision.int8, .int8Paper, .bfloat16]

  /// Times of one recipe at one length.
  struct Result {
    let length: Int
    let precision: Precision
    /// Sequences and heads that were asked for, and heads that were measured.
    let batch: Int
    let heads: Int
    let headsMeasured: Int
    let threads: Int
    let timing: Timing
    /// The shortest time of bfloat16 for the same heads.
    let baseline: Double

    var timeSaved: Double { 1 - timing.least / baseline }
    var speedOverBFloat16: Double { baseline / timing.least }
    var published: Double? { PublishedSpeed.improvement(length, precision) }
  }

  // MARK: Measurement

  /// Measures every recipe at one length.
  ///
  /// - Parameters:
  ///   - length: queries, and keys.
  ///   - note: is told what is measured and how long it will take.
  /// - Returns: a result per recipe.
  /// - Throws: `AttentionError`.
  func measure(_ length: Int, note: (String) -> Void) throws -> [Result] {
    let head = try SyntheticInput.normal.operands(
      shape(batch: 1, heads: 1, length),
      seed: seed,
      elementType: .bfloat16
    )
    // A head per thread tells how long all take.
    let threads = ThreadPool.shared.seatCount(backend.threadCount)
    let (all, probed) = (batch * heads, min(batch * heads, threads))
    var timings = try time(batch: 1, heads: probed, head, budget: 0)
    let secondsPerHead = timings.reduce(0) { $0 + $1.least } / Double(probed)
    // Each is run once to warm up and once in earnest.
    let affordable = Int(secondsPerLength / 2 / secondsPerHead) / threads * threads
    let measured = min(max(affordable, probed), all)
    if measured > probed {
      note("\(length) tokens, \(measured) of \(all) heads, about \(Int(secondsPerLength) + 1) s")
      timings = try time(
        batch: measured == all ? batch : 1,
        heads: measured == all ? heads : measured,
        head,
        budget: secondsPerLength / 2 / Double(Self.precisions.count)
      )
    }
    return Self.precisions.indices.map { index in
      Result(
        length: length,
        precision: Self.precisions[index],
        batch: batch,
        heads: heads,
        headsMeasured: measured,
        threads: threads,
        timing: timings[index],
        baseline: timings[Self.precisions.count - 1].least
      )
    }
  }

  /// Times of whole calls in turn, all heads holding the numbers of one.
  private func time(
    batch: Int,
    heads: Int,
    _ head: borrowing Operands,
    budget: Double
  ) throws -> [Timing] {
    let shape = try shape(batch: batch, heads: heads, head.query.shape[2])
    let operands = Operands(
      query: try head.query.repeated(shape.queryShape),
      key: try head.key.repeated(shape.keyShape),
      value: try head.value.repeated(shape.valueShape)
    )
    var output = try Tensor(.float32, shape: shape.outputShape)
    let plans = try Self.precisions.map { precision in
      try AttentionPlan(shape, precision: precision, options: options, on: backend)
    }
    return try Timing.alternating(
      plans.count,
      budget: budget,
      warmUp: { index in try operands.run(plans[index], into: output.mutableView) },
      run: { index in try operands.run(plans[index], into: output.mutableView) }
    )
  }

  private func shape(batch: Int, heads: Int, _ length: Int) throws -> AttentionShape {
    try AttentionShape(
      batchCount: batch,
      queryHeadCount: heads,
      keyValueHeadCount: heads,
      queryLength: length,
      keyValueLength: length,
      headDimension: 64
    )
  }

  // MARK: Report

  static let title = """
    Speed of int8 and int8Paper against bfloat16: time saved, and how much faster that is; beside \
    them the paper's full INT8 against FP16
    """

  /// A row per length.
  static func comparison(_ results: [Result]) -> Report {
    let milliseconds = precisions.map { precision in
      Column("seconds", "\(precision.rawValue) ms", .fixed(2, times: 1000))
    }
    let ratios = precisions.dropLast().flatMap { precision in
      [
        Column("timeSaved", "\(precision.rawValue) saves", .percent(0)),
        Column("speedOverBFloat16", "faster by", .percent(0)),
      ]
    }
    let ends = [Column("publishedImprovement", "paper", .percent(0))]
    let starts = [Column("keyValueLength", "N"), Column("headsMeasured", "heads")]
    var report = Report(starts + milliseconds + ratios + ends)
    for group in stride(from: 0, to: results.count, by: precisions.count) {
      let row = results[group..<group + precisions.count]
      let first = results[group]
      let ratios = row.dropLast().flatMap { result -> [Cell] in
        [.number(result.timeSaved), .number(result.speedOverBFloat16 - 1)]
      }
      report.append(
        [
          .integer(first.length),
          .text("\(first.headsMeasured) of \(first.batch * first.heads)"),
        ] + row.map { .number($0.timing.least) } + ratios
          + [.optional(row.compactMap(\.published).first)]
      )
    }
    return report
  }

  static let `protocol` = """
    Times are the shortest of whole calls of the heads that the column names, milliseconds; the \
    recipes take turns.

    Where the protocols of the speeds differ, and what that means for a comparison:
    - The paper measures an RTX 4090, Triton kernels, against FP16; here it is this processor, our \
    kernels, against bfloat16. Each ratio is one of two forms on one machine, and carries over to \
    no other.
    - The published 31 to 73 % are of its comparison of inference times, known second-hand. \
    Whether they are time saved or speed gained is not certain (its abstract says 72 % faster), so \
    both are here: 'saves' is 1 - t / t(bfloat16), 'faster by' is t(bfloat16) / t - 1.
    - The paper states neither batch, heads nor dimension. The released code has 4, 32 and 64, no \
    mask; so has this, unless options say otherwise.
    - The released code begins with operands that are INT8 already. Here every call begins with \
    bfloat16, which costs the bfloat16 form nothing; quantisation is inside the times of the others.
    - All heads hold the same normal numbers, in memory of their own.
    """
}

extension Tensor {
  /// This tensor again and again, until `shape` is full.
  fileprivate borrowing func repeated(_ shape: [Int]) throws(AttentionError) -> Tensor {
    let values = view.copyFloats()
    let times = shape.reduce(1, *) / max(values.count, 1)
    let all = Array(repeatElement(values, count: times).joined())
    return try Tensor(all, shape: shape, elementType: elementType)
  }
}

extension PaperSpeed.Result {
  /// Cells of the columns that `intfa paper` has in JSON and CSV.
  func cells(isa: String) -> [Cell] {
    [
      .text(SyntheticInput.normal.rawValue),
      .integer(length),
      .text(precision.rawValue),
      .text(isa),
      .none,
      .none,
      .none,
      .text(Paper.Experiment.speed.rawValue),
      .integer(batch),
      .integer(heads),
      .integer(headsMeasured),
      .integer(threads),
      .number(timing.least),
      .number(timing.median),
      .number(timeSaved),
      .number(speedOverBFloat16),
      .optional(published),
    ]
  }
}
