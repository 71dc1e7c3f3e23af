package import IntFlashAttention

/// Queries, keys and values of one call.
package struct Operands: ~Copyable {
  package let query: Tensor
  package let key: Tensor
  package let value: Tensor
  /// The order in which their dimensions are stored.
  let layout: TensorLayout

  /// Takes three tensors of rank 4, or of rank 3 for a batch of one.
  init(
    query: consuming Tensor,
    key: consuming Tensor,
    value: consuming Tensor,
    layout: TensorLayout = .batchHeadsTokens
  ) {
    self.query = query
    self.key = key
    self.value = value
    self.layout = layout
  }

  /// The shape that they have together.
  ///
  /// - Throws: `AttentionError` where they do not fit.
  func shape() throws(AttentionError) -> AttentionShape {
    try AttentionShape(
      query: query.view.operand(layout),
      key: key.view.operand(layout),
      value: value.view.operand(layout)
    )
  }

  /// Runs a plan on them.
  func run(
    _ plan: AttentionPlan,
    _ additions: borrowing Additions,
    into output: borrowing MutableTensorView
  ) throws(AttentionError) {
    try plan.run(
      query: query.view.operand(layout),
      key: key.view.operand(layout),
      value: value.view.operand(layout),
      mask: additions.maskView,
      alibiSlopes: additions.slopesView,
      sinks: additions.sinksView,
      into: output
    )
  }

  /// Runs a plan on nothing but them.
  func run(
    _ plan: AttentionPlan,
    into output: borrowing MutableTensorView
  ) throws(AttentionError) {
    try run(plan, Additions(), into: output)
  }

  /// Runs a plan on them, with the log-sum-exp.
  func run(
    _ plan: AttentionPlan,
    _ additions: borrowing Additions,
    into output: borrowing MutableTensorView,
    logSumExp: borrowing MutableTensorView
  ) throws(AttentionError) {
    try plan.run(
      query: query.view.operand(layout),
      key: key.view.operand(layout),
      value: value.view.operand(layout),
      mask: additions.maskView,
      alibiSlopes: additions.slopesView,
      sinks: additions.sinksView,
      into: output,
      logSumExp: logSumExp
    )
  }

  /// Attention by a recipe, row-major [B, Hq, Nq, Dv].
  func attend(
    _ recipe: QuantizationRecipe,
    _ options: AttentionOptions,
    on backend: any AttentionBackend
  ) throws(AttentionError) -> [Float] {
    let plan = try AttentionPlan(shape(), recipe: recipe, options: options, on: backend)
    var output = try Tensor(.float32, shape: plan.descriptor.shape.outputShape)
    try run(plan, into: output.mutableView)
    return output.copyFloats()
  }

  /// Exact attention of some rows of nothing but them.
  func exact(lastRows rows: Int, _ options: AttentionOptions) throws(AttentionError) -> [Float] {
    try exact(lastRows: rows, options, Additions())
  }

  /// Exact attention of some rows, in double precision, row-major [B, Hq, rows, Dv].
  ///
  /// - Parameters:
  ///   - rows: the last query rows of each head; as masks are aligned at the end, they see what they
  ///     see among all the others.
  ///   - options: scale, cap and mask.
  ///   - additions: what there is beside.
  /// - Returns: the rows in their order.
  /// - Throws: `AttentionError` as ``attend(_:_:on:)``.
  func exact(
    lastRows rows: Int,
    _ options: AttentionOptions,
    _ additions: borrowing Additions
  ) throws(AttentionError) -> [Float] {
    let full = try shape()
    let (length, dimension) = (full.queryLength, full.headDimension)
    let shape = try AttentionShape(
      batchCount: full.batchCount,
      queryHeadCount: full.queryHeadCount,
      keyValueHeadCount: full.keyValueHeadCount,
      queryLength: min(rows, length),
      keyValueLength: full.keyValueLength,
      headDimension: dimension,
      valueDimension: full.valueDimension
    )
    let plan = try AttentionPlan(
      shape,
      precision: .float32,
      options: options,
      on: ReferenceBackend()
    )
    let queries = try query.view.operand(layout).copyFloats()
    let part = try TensorView(
      queries.span,
      shape: shape.queryShape,
      strides: [full.queryHeadCount * length * dimension, length * dimension, dimension, 1],
      offset: (length - shape.queryLength) * dimension
    )
    var output = try Tensor(.float32, shape: shape.outputShape)
    let last = try additions.lastRows(shape.queryLength, queryLength: length)
    try plan.run(
      query: part,
      key: key.view.operand(layout),
      value: value.view.operand(layout),
      mask: last.maskView,
      alibiSlopes: last.slopesView,
      sinks: last.sinksView,
      into: output.mutableView
    )
    return output.copyFloats()
  }
}

extension AttentionShape {
  /// The last query rows of each head of an output, row-major.
  func lastRows(_ rows: Int, of output: [Float]) -> [Float] {
    guard rows < queryLength else { return output }
    let head = queryLength * valueDimension
    return stride(from: 0, to: output.count, by: max(head, 1)).flatMap { start in
      output[start + head - rows * valueDimension..<start + head]
    }
  }
}
