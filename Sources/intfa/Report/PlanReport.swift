import IntFlashAttention

/// What was computed, and with what: the columns that several verbs have.
enum PlanReport {
  static let columns = [
    Column("precision", "precision"),
    Column("backend", "backend"),
    Column("isa", "instruction set"),
    Column("batch", "batch"),
    Column("queryHeads", "query heads"),
    Column("keyValueHeads", "key/value heads"),
    Column("queryLength", "queries"),
    Column("keyValueLength", "keys"),
    Column("headDimension", "head dimension"),
    Column("valueDimension", "value dimension"),
    Column("mask", "mask"),
    Column("softmaxScale", "softmax scale"),
    Column("softcap", "soft cap"),
    Column("threads", "threads"),
  ]

  /// The cells from `precision` to `headDimension`, with which every row about a plan begins.
  static func firstCells(_ plan: AttentionPlan, _ precision: Precision) -> [Cell] {
    let (shape, summary) = (plan.descriptor.shape, plan.summary)
    return [
      .text(precision.rawValue),
      .text(summary.backend),
      .text(summary.instructionSet),
      .integer(shape.batchCount),
      .integer(shape.queryHeadCount),
      .integer(shape.keyValueHeadCount),
      .integer(shape.queryLength),
      .integer(shape.keyValueLength),
      .integer(shape.headDimension),
    ]
  }

  static func cells(_ plan: AttentionPlan, _ precision: Precision) -> [Cell] {
    firstCells(plan, precision) + [
      .integer(plan.descriptor.shape.valueDimension),
      .text(plan.descriptor.options.mask.name),
      .float(plan.descriptor.softmaxScale),
      plan.descriptor.options.softcap.map(Cell.float) ?? .none,
      .integer(plan.summary.threadCount),
    ]
  }
}
