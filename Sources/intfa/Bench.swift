import ArgumentParser
import IntFlashAttention

/// `intfa bench`: time, rate and error in one row.
struct Bench: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Measure speed and error of precisions over shapes.",
    discussion: """
      A time is that of a whole call, quantisation and packing included. The precisions and \
      instruction sets of a shape take turns, so that whatever slows the machine down meets all \
      alike; seconds is the shortest time, secondsMedian the median. Calls of less than 0.2 ms \
      are timed together, as many as fill that, and the time is their mean. Inputs are normal \
      with what language models add: channels of the keys with a common offset, and an attention \
      sink at token 0.

      prepassSeconds is the shortest time until the tile loop begins, taken inside the same calls, \
      or for those that are timed together inside calls between them. gops is \
      4·B·Hq·Nq·Nk·D / seconds / 10⁹, halved when causal; where queries and keys differ in \
      number, with a window or prefix, it counts the pairs that these leave; what --mask hides counts. peakGops is what the \
      instruction that the tile loop is made of reaches on as many cores, measured between the \
      calls; null where the instruction set has none to measure. fractionOfPeak is gops / \
      peakGops, tileLoopFractionOfPeak the same for seconds - prepassSeconds. relativeL1 and \
      cosine are against float64 attention on the last query rows of every head, \
      \(Self.referenceRows) rows in all or one per head.

      JSON keys: precision backend isa batch queryHeads keyValueHeads queryLength keyValueLength \
      headDimension causal threads seconds secondsMedian prepassSeconds gops peakGops \
      fractionOfPeak tileLoopFractionOfPeak relativeL1 cosine inputType.
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
  var inputType = OperandType.float32

  @Option(help: ArgumentHelp("Seconds of measurement per row.", valueName: "seconds"))
  var repeatSeconds = 2.0

  @OptionGroup(title: "Formula") var mask: MaskOptions
  @OptionGroup(title: "Formula") var math: MathOptions
  @OptionGroup(title: "Formula") var added: AdditionOptions
  @OptionGroup(title: "Backend") var backend: BackendOptions
  @OptionGroup(title: "Output") var seed: SeedOptions
  @OptionGroup(title: "Output") var output: OutputOptions

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
    let backends = try backend.makeEach()
    let options = StoredOptions().merged(math, mask)
    let shapes = try shape.shapes(decode: decode)
    guard !decode else {
      try runDecode(shapes, options, on: backends)
      return
    }
    // Everything is planned first, so that an impossible combination does not cost the others.
    let entries = try shapes.map { shape in
      try backends.flatMap { backend in
        try precisions.values.map { precision in
          Entry(
            precision: precision,
            plan: try AttentionPlan(shape, precision: precision, options: options, on: backend)
          )
        }
      }
    }
    let progress = Progress(total: Double(shapes.count), quiet: output.quiet)
    var report = Report(Self.columns)
    for (shape, entries) in zip(shapes, entries) {
      progress.advance(0, next: "\(shape.keyValueLength) keys, D = \(shape.headDimension)")
      try measure(shape, entries, into: &report)
      progress.advance(1)
    }
    progress.clear()
    output.print(report)
  }

  /// What a row is about.
  private struct Entry {
    let precision: Precision
    let plan: AttentionPlan
  }

  private func runDecode(
    _ shapes: [AttentionShape],
    _ options: AttentionOptions,
    on backends: [any AttentionBackend]
  ) throws {
    let bench = DecodeBench(
      precisions: precisions.values,
      options: options,
      elementType: inputType.elementType,
      repeatSeconds: repeatSeconds,
      seed: seed.seed
    )
    let progress = Progress(total: Double(shapes.count), quiet: output.quiet)
    var report = Report(DecodeBench.columns)
    for shape in shapes {
      progress.advance(0, next: "\(shape.keyValueLength) keys, D = \(shape.headDimension)")
      let additions = try added.additions(queryHeadCount: shape.queryHeadCount)
      for backend in backends { try bench.measure(shape, additions, on: backend, into: &report) }
      progress.advance(1)
    }
    progress.clear()
    output.print(report)
  }

  private func measure(
    _ shape: AttentionShape,
    _ entries: [Entry],
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
    let exact = try operands.exact(lastRows: rows, entries[0].plan.descriptor.options, additions)
    var result = try Tensor(.float32, shape: shape.outputShape)
    var errors: [AccuracyReport] = []
    var times: [CallTimes] = []
    for entry in entries {
      times.append(try CallTimes(entry.plan, operands, additions, into: result.mutableView))
      let part = shape.lastRows(rows, of: result.copyFloats())
      errors.append(AccuracyReport(part, against: exact))
    }
    try Timing.takeTurns(entries.count, budget: repeatSeconds) { index in
      try times[index].measure(operands, additions, into: result.mutableView)
    }
    for (index, entry) in entries.enumerated() {
      report.append(cells(entry, times[index], errors[index]))
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
    Column("prepassSeconds", "pre-pass", .fixed(3, times: 1000)),
    Column("gops", "Gop/s", .fixed(1)),
    Column("peakGops", "peak", .fixed(1)),
    Column("fractionOfPeak", "of peak", .percent(1)),
    Column("tileLoopFractionOfPeak", "tile loop", .percent(1)),
    Column("relativeL1", "rel. L1", .percent(3)),
    Column("cosine", "cosine", .fixed(6)),
    Column("inputType", nil),
  ]

  private func cells(_ entry: Entry, _ times: CallTimes, _ error: AccuracyReport) -> [Cell] {
    let plan = entry.plan
    let seconds = times.whole.least
    let prepass = times.prepass.isEmpty ? nil : times.prepass.least
    let billions = plan.descriptor.conventionalOperationCount * 1e-9
    return PlanReport.firstCells(plan, entry.precision) + [
      .flag(plan.descriptor.options.mask == .causal),
      .integer(plan.summary.threadCount),
      .number(seconds),
      .number(times.whole.median),
      .optional(prepass),
      .number(billions / seconds),
      .optional(times.peakGops),
      .optional(times.peakGops.map { billions / seconds / $0 }),
      .optional(
        prepass.flatMap { prepass in times.peakGops.map { billions / (seconds - prepass) / $0 } }
      ),
      .number(error.relativeL1),
      .number(error.cosine),
      .text(inputType.rawValue),
    ]
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
