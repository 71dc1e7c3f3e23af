import ArgumentParser
import FoundationEssentials
import IntFlashAttention

/// `intfa demo`: the main job, with nothing to prepare.
struct Demo: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Attention of a real model's layer in every precision: time, error, memory.",
    discussion: """
      The activations are part of the program: \(DemoActivations.source). Times are the shortest of \
      several whole calls on float16 inputs, quantisation included; the precisions take turns. \
      Errors are against float64 attention on the same inputs.

      JSON keys: precision backend isa threads seconds secondsMedian speedOverFloat32 \
      speedOverBFloat16 relativeL1 cosine keyValueBytesPerToken.
      """
  )

  @Option(
    defaultAsFlag: DemoReport.usualPath,
    help: ArgumentHelp(
      "Also write a report in HTML.",
      valueName: "path"
    ),
    completion: .file()
  )
  var report: String?

  @OptionGroup(title: "Backend") var processor: ProcessorOptions
  @OptionGroup(title: "Output") var output: OutputOptions

  /// Seconds of measurement per precision.
  private static let budget = 0.4

  func validate() throws {
    if let report { try OutputPath.validate(report) }
  }

  func run() throws {
    let backend = try processor.cpuBackend()
    let file = try DemoActivations.file()
    let options = try file.storedOptions().options
    let operands = try file.operands()
    let shape = try operands.shape()
    let plans = try Precision.allCases.compactMap { precision in
      try AttentionPlan(ifComputed: precision, shape, options, on: backend)
        .map { (precision: precision, plan: $0) }
    }
    let progress = Progress(total: Double(2 * plans.count), quiet: output.quiet)
    progress.advance(0, next: "float64 reference")
    let exact = try operands.exact(lastRows: shape.queryLength, options)

    var result = try Tensor(.float32, shape: shape.outputShape)
    var errors: [AccuracyReport] = []
    let timings = try Timing.alternating(
      plans.count,
      budget: Self.budget,
      warmUp: { index in
        try operands.run(plans[index].plan, into: result.mutableView)
        errors.append(AccuracyReport(result.copyFloats(), against: exact))
        progress.advance(1, next: plans[index].precision.rawValue)
      },
      run: { index in try operands.run(plans[index].plan, into: result.mutableView) }
    )
    progress.clear()

    let rows = DemoRows(plans.map(\.precision), plans.map(\.plan), timings, errors)
    if output.format == .table { print(heading(shape, plans[0].plan)) }
    output.print(rows.report)
    output.printBesideTable(
      """

      Speed: how many times faster than float32 and bfloat16 here. Error: against float64 on the \
      same inputs. K/V: bytes that a token's key and value take per key/value head.
      """
    )
    if let path = report {
      try DemoReport.write(rows, heading: heading(shape, plans[0].plan), to: path)
      output.note("\(path) written")
    }
  }

  private func heading(_ shape: AttentionShape, _ plan: AttentionPlan) -> String {
    let summary = plan.summary
    return """
      Causal attention, \(shape.queryHeadCount) query heads on \(shape.keyValueHeadCount) \
      key/value head\(shape.keyValueHeadCount == 1 ? "" : "s"), \(shape.queryLength) tokens, D = \(shape.headDimension), float16 inputs.
      Data: \(DemoActivations.source).
      Machine: \(Machine.processorName), backend \(summary.backend), \(summary.instructionSet) \
      kernels, \(summary.threadCount) thread\(summary.threadCount == 1 ? "" : "s").

      """
  }
}

/// A row per precision.
struct DemoRows {
  private(set) var rows: [Row]

  /// What was measured of one precision.
  struct Row {
    let precision: Precision
    let plan: AttentionPlan
    let timing: Timing
    let error: AccuracyReport
  }

  init(
    _ precisions: [Precision],
    _ plans: [AttentionPlan],
    _ timings: [Timing],
    _ errors: [AccuracyReport]
  ) {
    rows = precisions.indices.map {
      Row(precision: precisions[$0], plan: plans[$0], timing: timings[$0], error: errors[$0])
    }
  }

  /// The shortest time of a precision, or nil where it was not run.
  private func least(_ precision: Precision) -> Double? {
    rows.first { $0.precision == precision }?.timing.least
  }

  /// How many times faster than another precision a row is.
  func speed(_ row: Row, over other: Precision) -> Double? {
    least(other).map { $0 / row.timing.least }
  }

  /// The rows as a report.
  var report: Report {
    var report = Report([
      Column("precision", "precision"),
      Column("backend", nil),
      Column("isa", nil),
      Column("threads", nil),
      Column("seconds", "time, ms", .fixed(2, times: 1000)),
      Column("secondsMedian", nil),
      Column("speedOverFloat32", "× float32", .fixed(2)),
      Column("speedOverBFloat16", "× bfloat16", .fixed(2)),
      Column("relativeL1", "error, rel. L1", .percent(3)),
      Column("cosine", "cosine", .fixed(6)),
      Column("keyValueBytesPerToken", "K/V bytes", .fixed(1)),
    ])
    for row in rows {
      let summary = row.plan.summary
      report.append([
        .text(row.precision.rawValue),
        .text(summary.backend),
        .text(summary.instructionSet),
        .integer(summary.threadCount),
        .number(row.timing.least),
        .number(row.timing.median),
        .optional(speed(row, over: .float32)),
        .optional(speed(row, over: .bfloat16)),
        .number(row.error.relativeL1),
        .number(row.error.cosine),
        .number(summary.keyValueBytesPerToken),
      ])
    }
    return report
  }
}

extension AttentionPlan {
  /// A plan, or nil where the backend has no kernel for this precision.
  init?(
    ifComputed precision: Precision,
    _ shape: AttentionShape,
    _ options: AttentionOptions,
    on backend: any AttentionBackend
  ) throws(AttentionError) {
    do throws(AttentionError) {
      try self.init(shape, precision: precision, options: options, on: backend)
    } catch  where error.code == .unsupported {
      return nil
    }
  }
}
