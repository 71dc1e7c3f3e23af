import ArgumentParser
import IntFlashAttention

/// `intfa explain`: the plan for a shape.
struct Explain: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Print the plan for a shape: kernels, tile sizes, work, memory. Nothing runs.",
    discussion: """
      Tables give one plan after the other; memory is counted beside inputs and outputs. JSON keys: \
      precision backend isa batch queryHeads keyValueHeads queryLength keyValueLength \
      headDimension valueDimension mask softmaxScale softcap threads kernels tileLengths \
      queryBlockLength workItems workspaceBytes keyValueBytesPerToken cacheBytesPerToken cacheOfBFloat16 operations. \
      cacheBytesPerToken is what a key/value cache takes, cacheOfBFloat16 its share of two bytes a \
      number; null where the precision has no cache.
      """
  )

  @OptionGroup(title: "Shape") var shape: ShapeOptions
  @OptionGroup(title: "Recipe and formula") var precision: PrecisionOptions
  @OptionGroup(title: "Recipe and formula") var mask: MaskOptions
  @OptionGroup(title: "Recipe and formula") var math: MathOptions
  @OptionGroup(title: "Backend") var backend: BackendOptions
  @OptionGroup(title: "Output") var output: OutputOptions
  @OptionGroup(title: "Output") var seed: SeedOptions

  func run() throws {
    var report = Report(
      PlanReport.columns + [
        Column("kernels", "kernels"),
        Column("tileLengths", "keys per tile"),
        Column("queryBlockLength", "rows per block"),
        Column("workItems", "work items"),
        Column("workspaceBytes", "workspace bytes"),
        Column("keyValueBytesPerToken", "bytes per token and key/value head"),
        Column("cacheBytesPerToken", "the same in a cache"),
        Column("cacheOfBFloat16", "of a cache in bfloat16", .percent(0)),
        Column("operations", "operations"),
      ]
    )
    let backend = try backend.make()
    let options = StoredOptions().merged(math, mask)
    for shape in try shape.shapes() {
      let plan = try AttentionPlan(
        shape,
        precision: precision.precision,
        options: options,
        on: backend
      )
      let summary = plan.summary
      let cacheBytes = cacheBytes(shape, on: backend)
      let numbersPerToken = shape.headDimension + shape.valueDimension
      let share = cacheBytes.map { $0 / Double(2 * numbersPerToken) }
      report.append(
        PlanReport.cells(plan, precision.precision) + [
          .list(summary.kernels),
          .integers(summary.tileLengths),
          .integer(summary.queryBlockLength),
          .integer(summary.workItemCount),
          .integer(summary.workspaceByteCount),
          .number(summary.keyValueBytesPerToken),
          .optional(cacheBytes),
          .optional(share),
          .number(plan.descriptor.operationCount),
        ]
      )
    }
    output.print(report, upright: true)
  }

  /// Bytes per token and head of a cache; nil where there is none.
  private func cacheBytes(_ shape: AttentionShape, on backend: any AttentionBackend) -> Double? {
    let pool = try? KVCachePool(
      keyValueHeadCount: 1,
      headDimension: shape.headDimension,
      valueDimension: shape.valueDimension,
      capacity: 1,
      precision: precision.precision,
      on: backend
    )
    return pool?.bytesPerToken
  }
}
