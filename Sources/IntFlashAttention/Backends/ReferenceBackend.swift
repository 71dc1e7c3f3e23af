/// The definition: every recipe step by step, sums in double precision, no tricks.
///
/// Integer codes and scales are those of the recipe, in float32 as it prescribes; everything after
/// them is computed in `Double`. With ``Precision/float32`` it is exact attention. Quadratic time and
/// slow; every other backend is compared with it.
public struct ReferenceBackend: AttentionBackend {
  /// The reference; it has no options.
  public init() {}

  /// `reference`.
  public var name: String { "reference" }

  /// A kernel for any valid recipe; never throws.
  public func makeKernel(for descriptor: AttentionDescriptor) -> any AttentionKernel {
    ReferenceKernel(descriptor: descriptor)
  }
}

struct ReferenceKernel: AttentionKernel {
  let descriptor: AttentionDescriptor

  var summary: PlanSummary {
    let shape = descriptor.shape
    return PlanSummary(
      backend: "reference",
      instructionSet: "none",
      tileLengths: [descriptor.recipe.firstTileLength, descriptor.recipe.tileLength],
      queryBlockLength: 1,
      workItemCount: shape.batchCount * shape.queryHeadCount * shape.queryLength,
      threadCount: ThreadPool.shared.threadCount,
      workspaceByteCount: 16 * shape.keyValueLength * (shape.headDimension + shape.valueDimension),
      keyValueBytesPerToken: descriptor.recipe.keyValueBytesPerToken(shape),
      kernels: ["reference in double precision"]
    )
  }

  func run(_ operands: AttentionOperands) throws(AttentionError) {
    try checkInputs(operands)
    let shape = descriptor.shape
    for batch in 0..<shape.batchCount {
      for head in 0..<shape.queryHeadCount {
        let shared = head / shape.groupSize
        let operandsOfHead = ReferenceHead(
          descriptor,
          query: HeadRows(operands.query.view, batch: batch, head: head),
          key: HeadRows(operands.key.view, batch: batch, head: shared),
          value: HeadRows(operands.value.view, batch: batch, head: shared),
          mask: ReferenceMask(operands, descriptor, batch: batch, head: head)
        )
        ThreadPool.shared.run(itemCount: shape.queryLength) { row, _ in
          store(operandsOfHead.attend(row: row), operands, batch: batch, head: head, row: row)
        }
      }
    }
  }

  private func store(
    _ result: ReferenceHead.Result,
    _ operands: AttentionOperands,
    batch: Int,
    head: Int,
    row: Int
  ) {
    let output = operands.output.mutableView
    let start = zip([batch, head, row], output.strides).reduce(0) { $0 + $1.0 * $1.1 }
    for (channel, value) in result.output.enumerated() {
      output.store(Float(value), atOffset: start + channel)
    }
    guard let logSumExp = operands.logSumExp?.mutableView else { return }
    let place = zip([batch, head, row], logSumExp.strides).reduce(0) { $0 + $1.0 * $1.1 }
    logSumExp.store(Float(result.logSumExp), atOffset: place)
  }

  private func checkInputs(_ operands: AttentionOperands) throws(AttentionError) {
    let recipe = descriptor.recipe
    let query = try InputCheck.largest(of: operands.query, .query, recipe.query)
    let key = try InputCheck.largest(of: operands.key, .key, recipe.key)
    _ = try InputCheck.largest(of: operands.value, .value, recipe.value)
    try ReferenceMask.check(operands.mask)
    try InputCheck.requireLogits(
      largestQuery: query,
      largestKey: key,
      descriptor: descriptor
    )
  }
}

extension InputCheck {
  /// The largest magnitude of all elements, each of which is looked at.
  ///
  /// - Throws: `AttentionError` with code `.nonFiniteInput` or `.valueOutOfRange`.
  static func largest(
    of operand: AttentionOperands.Operand,
    _ tensor: Tensor,
    _ format: OperandFormat
  ) throws(AttentionError) -> Float {
    let limit = limit(for: format)
    var largest: Float = 0
    for batch in 0..<operand.shape[0] {
      for head in 0..<operand.shape[1] {
        let rows = HeadRows(operand.view, batch: batch, head: head)
        for token in 0..<rows.count
        where rows.row(token).contains(where: { !($0.magnitude < limit) }) {
          throw error(
            tensor,
            batch: batch,
            head: head,
            token: token,
            row: rows.row(token),
            limit: limit
          )
        }
        largest = max(largest, rows.largest())
      }
    }
    return largest
  }
}
