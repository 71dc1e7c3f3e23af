import ArgumentParser
import IntFlashAttention

/// `intfa bench`: time, rate and error in one row.
struct Bench: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Measure speed and error of precisions over shapes.",
    discussion: """
      A time is that of a whole call, quantisation and packing included. The precisions of a shape \
      take turns, so that whatever slows the machine down meets all alike; seconds is the shortest \
      time, secondsMedian the median. Inputs are normal with what language models add: channels of \
      the keys with a common offset, and an attention sink at token 0.

      gops is 4·B·Hq·Nq·Nk·D / seconds / 10⁹, halved when causal; where queries and keys differ in \
      number, and with a window or prefix, it counts the pairs that these leave; what --mask hides \
      counts. relativeL1 and cosine \
      are against float64 attention on the last query rows of every head, \(Self.referenceRows) \
      rows in all or one per head. peakGops is what the instruction that the tile loop is made of \
      reaches on as many cores, measured beside the times; null where the instruction set has none \
      to measure. prepassSeconds is not measured yet, and null.

      JSON keys: precision backend isa batch queryHeads keyValueHeads queryLength keyValueLength \
      headDimension causal threads seconds secondsMedian prepassSeconds gops peakGops \
      fractionOfPeak relativeL1 cosine.
      """
  )

  @Option(
    name: [.customLong("precisions"), .customLong("precision")],
    help: ArgumentHelp("The recipes to compare.", valueName: "name,…"),
    transform: CommaList<Precision>.precisions
  )
  var precisions = CommaList([Precision.int8, .bfloat16])

  @OptionGroup(title: "Shape") var shape: ShapeOptions

  @Flag(help: "One query against caches of the given lengths.")
  var decode = false

  @Option(help: "Element type of queries, keys and values.")
  var inputType = InputType.float32

  @Option(help: ArgumentHelp("Seconds of measurement per row.", valueName: "seconds"))
  var repeatSeconds = 2.0

  @OptionGroup(title: "Formula") var mask: MaskOptions
  @OptionGroup(title: "Formula") var math: MathOptions
  @OptionGroup(title: "Formula") var added: AdditionOptions
  @OptionGroup(title: "Backend") var backend: BackendOptions
  @OptionGroup(title: "Output") var seed: SeedOptions
  @OptionGroup(title: "Output") var output: OutputOptions

  /// The element types that `--input-type` takes.
  enum InputType: String, ExpressibleByArgument, CaseIterable {
    case float32, bfloat16

    var elementType: ElementType { self == .float32 ? .float32 : .bfloat16 }
  }

  /// Rows in all that are compared with the reference.
  private static let referenceRows = 128

  func validate() throws {
    guard repeatSeconds.isFinite, repeatSeconds >= 0 else {
      throw ValidationError(
        "--repeat-seconds is \(repeatSeconds); it must be finite and at least 0"
      )
    }
    if decode, let length = shape.queryLength, length != 1 {
      throw ValidationError("--decode is one query; it contradicts --query-length \(length)")
    }
  }

  func run() throws {
    let backend = try backend.make()
    let options = StoredOptions().merged(math, mask)
    let shapes = try shape.shapes(decode: decode)
    // Everything is planned first, so that an impossible combination does not cost the others.
    let plans = try shapes.map { shape in
      try precisions.values.map { precision in
        try AttentionPlan(shape, precision: precision, options: options, on: backend)
      }
    }
    let progress = Progress(total: Double(shapes.count), quiet: output.quiet)
    var report = Report(Self.columns)
    for (shape, plans) in zip(shapes, plans) {
      progress.advance(0, next: "\(shape.keyValueLength) keys, D = \(shape.headDimension)")
      try measure(shape, plans, into: &report)
      progress.advance(1)
    }
    progress.clear()
    output.print(report)
  }

  private func measure(
    _ shape: AttentionShape,
    _ plans: [AttentionPlan],
    into report: inout Report
  ) throws {
    let operands = try SyntheticInput.outliers.operands(
      shape,
      seed: seed.seed,
      elementType: inputType.elementType
    )
    let heads = shape.batchCount * shape.queryHeadCount
    let additions = try added.additions(queryHeadCount: shape.queryHeadCount)
    let rows = min(max(Self.referenceRows / heads, 1), shape.queryLength)
    let exact = try operands.exact(lastRows: rows, plans[0].descriptor.options, additions)
    var result = try Tensor(.float32, shape: shape.outputShape)
    var errors: [AccuracyReport] = []
    var peaks: [Double?] = []
    let timings = try Timing.alternating(
      plans.count,
      budget: repeatSeconds,
      warmUp: { index in
        try operands.run(plans[index], additions, into: result.mutableView)
        let part = shape.lastRows(rows, of: result.copyFloats())
        errors.append(AccuracyReport(part, against: exact))
        peaks.append(plans[index].measurePeak())
      },
      run: { index in try operands.run(plans[index], additions, into: result.mutableView) }
    )
    for (index, precision) in precisions.values.enumerated() {
      // Once before and once after what it is compared with: the clock moves.
      let peak = peaks[index].map { max($0, plans[index].measurePeak() ?? 0) }
      report.append(cells(precision, plans[index], timings[index], peak, errors[index]))
    }
  }

  // MARK: Report

  private static let columns = [
    Column("precision", "precision"),
    Column("backend", nil),
    Column("isa", "isa"),
    Column("batch", "B"),
    Column("queryHeads", "Hq"),
    Column("keyValueHeads", "Hkv"),
    Column("queryLength", "Nq"),
    Column("keyValueLength", "Nk"),
    Column("headDimension", "D"),
    Column("causal", "causal"),
    Column("threads", "threads"),
    Column("seconds", "ms", .fixed(3, times: 1000)),
    Column("secondsMedian", "median", .fixed(3, times: 1000)),
    Column("prepassSeconds", nil),
    Column("gops", "Gop/s", .fixed(1)),
    Column("peakGops", "peak", .fixed(1)),
    Column("fractionOfPeak", "of peak", .percent(1)),
    Column("relativeL1", "rel. L1", .percent(3)),
    Column("cosine", "cosine", .fixed(6)),
  ]

  private func cells(
    _ precision: Precision,
    _ plan: AttentionPlan,
    _ timing: Timing,
    _ peak: Double?,
    _ error: AccuracyReport
  ) -> [Cell] {
    let rate = plan.descriptor.conventionalOperationCount / timing.least / 1e9
    return PlanReport.firstCells(plan, precision) + [
      .flag(plan.descriptor.options.mask == .causal),
      .integer(plan.summary.threadCount),
      .number(timing.least),
      .number(timing.median),
      .none,
      .number(rate),
      .optional(peak),
      .optional(peak.map { rate / $0 }),
      .number(error.relativeL1),
      .number(error.cosine),
    ]
  }
}

extension AttentionPlan {
  /// What all threads of the plan could do at most, in billions of operations a second; nil where
  /// nothing is known of the backend's instructions.
  func measurePeak() -> Double? {
    guard let instructionSet = InstructionSet(rawValue: summary.instructionSet) else { return nil }
    return CPUPeak.measure(descriptor, on: instructionSet).map { $0 * Double(summary.threadCount) }
  }
}

extension AttentionDescriptor {
  /// Operations as the field counts them: causal attention of as many queries as keys is half.
  var conventionalOperationCount: Double {
    guard options.mask == .causal, shape.queryLength == shape.keyValueLength else {
      return operationCount
    }
    let pairs = Double(shape.queryLength) * Double(shape.keyValueLength) / 2
    let perPair = 2 * Double(shape.headDimension + shape.valueDimension)
    return Double(shape.batchCount * shape.queryHeadCount) * pairs * perPair
  }
}
