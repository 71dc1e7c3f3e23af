import ArgumentParser
import IntFlashAttention

/// `intfa paper`: the experiments of INT-FlashAttention, done here.
struct Paper: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Redo the experiments of INT-FlashAttention beside the published figures.",
    discussion: """
      INT-FlashAttention (arXiv 2409.16997) gives the mean relative error (MRE) of FP8, its half \
      INT8 and its full INT8 recipe on one layer of invented data, and how much faster than FP16 \
      its full INT8 is. Here the same recipes run on data of the same kind, and beside them our \
      int8; speed is that against our bfloat16, on this processor.

      Heads take turns in a call, so time is proportional to their number. Where a call of all of \
      them does not fit into --seconds-per-length, fewer are measured; the heads column says how \
      many, and times are of those.

      JSON keys: distribution keyValueLength precision isa relativeL1 meanRelativeError \
      publishedMeanRelativeError experiment batch heads headsMeasured threads seconds \
      secondsMedian timeSaved speedOverBFloat16 publishedImprovement. What an experiment does not \
      have is null.
      """
  )

  @Option(
    name: [.customLong("experiments"), .customLong("experiment")],
    help: ArgumentHelp("What to do: error, speed or both.", valueName: "name,…"),
    transform: CommaList<String>.experiments
  )
  var experiments = CommaList(Experiment.allCases.map(\.rawValue))

  @Option(
    help: ArgumentHelp("Tokens; figures are published for 1024 to 16384.", valueName: "n,…"),
    transform: CommaList<Int>.counts
  )
  var lengths = CommaList(PublishedErrors.lengths)

  @Option(
    help: ArgumentHelp("Factor of query · key; the paper does not state its own.", valueName: "x")
  )
  var softmaxScale: Float = 0.125

  @Option(help: ArgumentHelp("Sequences of a call whose time is taken.", valueName: "n"))
  var batch = 4

  @Option(help: ArgumentHelp("Heads of a call whose time is taken.", valueName: "n"))
  var heads = 32

  @Option(
    help: ArgumentHelp(
      "Seconds that the times of one length may take; at least one head is timed once.",
      valueName: "seconds"
    )
  )
  var secondsPerLength = 20.0

  @OptionGroup(title: "Backend") var processor: ProcessorOptions
  @OptionGroup(title: "Output") var seed: SeedOptions
  @OptionGroup(title: "Output") var output: OutputOptions

  /// Query rows that are computed of each length for its error.
  private static let queryLength = 256

  enum Experiment: String, CaseIterable {
    case error, speed
  }

  func validate() throws {
    guard softmaxScale.isFinite else {
      throw ValidationError("--softmax-scale is \(softmaxScale); it must be finite")
    }
    for (name, value) in [("batch", batch), ("heads", heads)] where value < 1 {
      throw ValidationError("--\(name) is \(value); it must be at least 1")
    }
    guard secondsPerLength.isFinite, secondsPerLength >= 0 else {
      throw ValidationError(
        "--seconds-per-length is \(secondsPerLength); it must be finite and at least 0"
      )
    }
  }

  func run() throws {
    let backend = try processor.cpuBackend()
    let isa = try backend.chosenInstructionSet().rawValue
    let does = { (experiment: Experiment) in experiments.values.contains(experiment.rawValue) }
    let errors = does(.error) ? try measureErrors(on: backend) : []
    let times = does(.speed) ? try measureTimes(on: backend) : []
    switch output.format {
    case .table:
      for kind in SyntheticInput.allCases where errors.contains(where: { $0.kind == kind }) {
        print("\(PublishedErrors.title(kind))\n")
        output.print(Self.comparison(errors.filter { $0.kind == kind }))
        print("")
      }
      if !times.isEmpty {
        print("\(PaperSpeed.title)\n")
        output.print(PaperSpeed.comparison(times))
        print("")
      }
    case .json, .csv:
      var report = Report(Self.columns)
      for error in errors { report.append(cells(error, isa: isa)) }
      for time in times { report.append(time.cells(isa: isa)) }
      output.print(report)
    }
    let notes = (does(.error) ? [errorProtocol] : []) + (does(.speed) ? [PaperSpeed.protocol] : [])
    output.printBesideTable(notes.joined(separator: "\n\n"))
  }

  // MARK: Measurement

  /// The error of one recipe on one input.
  private struct Result {
    let kind: SyntheticInput
    let length: Int
    let precision: Precision
    let error: AccuracyReport

    var published: Double? { PublishedErrors.meanRelative(kind, length, precision) }
  }

  private func measureErrors(on backend: CPUBackend) throws -> [Result] {
    let kinds = [SyntheticInput.normal, .uniform]
    let total = lengths.values.reduce(0, +) * kinds.count
    let progress = Progress(total: Double(total), quiet: output.quiet)
    defer { progress.clear() }
    return try kinds.flatMap { kind in
      try lengths.values.flatMap { length in
        progress.advance(0, next: "\(kind.rawValue), \(length) tokens")
        defer { progress.advance(Double(length)) }
        return try measure(kind, length, on: backend)
      }
    }
  }

  private func measureTimes(on backend: CPUBackend) throws -> [PaperSpeed.Result] {
    let speed = PaperSpeed(
      batch: batch,
      heads: heads,
      secondsPerLength: secondsPerLength,
      options: AttentionOptions(softmaxScale: softmaxScale),
      seed: seed.seed,
      backend: backend
    )
    let progress = Progress(total: Double(lengths.values.count), quiet: output.quiet)
    defer { progress.clear() }
    return try lengths.values.flatMap { length in
      progress.advance(0, next: "\(length) tokens")
      defer { progress.advance(1) }
      return try speed.measure(length) { progress.advance(0, next: $0) }
    }
  }

  private func measure(
    _ kind: SyntheticInput,
    _ length: Int,
    on backend: CPUBackend
  ) throws -> [Result] {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: min(length, Self.queryLength),
      keyValueLength: length,
      headDimension: 64
    )
    let operands = try kind.operands(shape, seed: seed.seed)
    let options = AttentionOptions(softmaxScale: softmaxScale)
    let exact = try operands.exact(lastRows: shape.queryLength, options)
    return try PublishedErrors.precisions.map { precision in
      let values = try operands.attend(precision.recipe, options, on: backend)
      let error = AccuracyReport(values, against: exact)
      return Result(kind: kind, length: length, precision: precision, error: error)
    }
  }

  // MARK: Report

  /// A row per length, recipes side by side.
  private static func comparison(_ results: [Result]) -> Report {
    let groups = PublishedErrors.precisions.map { precision in
      let short = PublishedErrors.shortName(precision)
      let own = [
        Column("relativeL1", "\(short) L1", .percent(2)),
        Column("meanRelativeError", "MRE", .percent(2)),
      ]
      let paper = [Column("publishedMeanRelativeError", "paper", .percent(2))]
      return precision == .int8 ? own : own + paper
    }
    var report = Report([Column("keyValueLength", "N")] + groups.flatMap(\.self))
    for length in Set(results.map(\.length)).sorted() {
      let cells = results.filter { $0.length == length }.flatMap { result -> [Cell] in
        let own = [
          Cell.number(result.error.relativeL1), Cell.number(result.error.meanRelative),
        ]
        return result.precision == .int8 ? own : own + [.optional(result.published)]
      }
      report.append([.integer(length)] + cells)
    }
    return report
  }

  private static let columns = [
    Column("distribution", nil), Column("keyValueLength", nil), Column("precision", nil),
    Column("isa", nil), Column("relativeL1", nil), Column("meanRelativeError", nil),
    Column("publishedMeanRelativeError", nil), Column("experiment", nil), Column("batch", nil),
    Column("heads", nil), Column("headsMeasured", nil), Column("threads", nil),
    Column("seconds", nil), Column("secondsMedian", nil), Column("timeSaved", nil),
    Column("speedOverBFloat16", nil), Column("publishedImprovement", nil),
  ]

  private func cells(_ result: Result, isa: String) -> [Cell] {
    let error: [Cell] = [
      .text(result.kind.rawValue),
      .integer(result.length),
      .text(result.precision.rawValue),
      .text(isa),
      .number(result.error.relativeL1),
      .number(result.error.meanRelative),
      .optional(result.published),
      .text(Experiment.error.rawValue),
    ]
    return error + [Cell](repeating: .none, count: Self.columns.count - error.count)
  }

  private var errorProtocol: String {
    """
    L1 is Σ|a − b| / Σ|b|; MRE is the mean of |a − b| / (|b| + 10⁻⁵), the formula of the paper's \
    released code. Both are against float64 attention on the same float16 inputs.

    Where the protocols of the errors differ, and what that means for a comparison:
    - The paper states no formula of its MRE. The released code takes the last 4 elements of the \
    flattened output, here it is all elements of up to \(Self.queryLength) query rows. Outputs \
    cross zero, so a few elements near zero carry most of an element-wise MRE; it depends on the \
    seed. Relative L1 does not, and is what to compare recipes by.
    - The paper states neither batch, heads, dimension nor softmax scale. Here: one head, D = 64, \
    scale \(softmaxScale), no mask. (Its code has D = 64 and scale 1 or 1.3.) A larger scale \
    sharpens the softmax and changes every figure.
    - FP8: the released code casts to E5M2 without a scale; here it is E4M3 with one scale per \
    tensor and head, which errs about half as much.
    - Full INT8 sums the rounded P in the paper's text, the unrounded P in its code; here it is the \
    unrounded.
    - The published figures are third parties' transcripts of the paper's table.
    So the order of the recipes is what can be reproduced, not the single figures.
    """
  }
}
