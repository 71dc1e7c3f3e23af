/// A validated choice of backend, kernels and tile sizes for one descriptor; run it many times.
///
/// A plan can be shared between threads and prints what it chose. It keeps no tensor; the scratch
/// memory of a finished call stays with it for the next one.
public struct AttentionPlan: Sendable, CustomStringConvertible {
  /// What is computed.
  public let descriptor: AttentionDescriptor
  package let kernel: any AttentionKernel
  /// The descriptor's shapes, which every call is compared with.
  private let queryShape, keyShape, valueShape, outputShape: [Int]

  /// Plans a recipe of one's own.
  ///
  /// - Throws: `AttentionError` with code `.invalidArgument`, `.unsupported` or `.unavailable`.
  public init(
    _ shape: AttentionShape,
    recipe: QuantizationRecipe,
    options: AttentionOptions = AttentionOptions(),
    on backend: any AttentionBackend = CPUBackend()
  ) throws(AttentionError) {
    descriptor = try AttentionDescriptor(shape: shape, recipe: recipe, options: options)
    kernel = try backend.makeKernel(for: descriptor)
    queryShape = shape.queryShape
    keyShape = shape.keyShape
    valueShape = shape.valueShape
    outputShape = shape.outputShape
  }

  /// Plans a named precision.
  ///
  /// - Throws: `AttentionError` with code `.invalidArgument`, `.unsupported` or `.unavailable`.
  public init(
    _ shape: AttentionShape,
    precision: Precision = .int8,
    options: AttentionOptions = AttentionOptions(),
    on backend: any AttentionBackend = CPUBackend()
  ) throws(AttentionError) {
    try self.init(shape, recipe: precision.recipe, options: options, on: backend)
  }

  /// What was chosen.
  public var summary: PlanSummary { kernel.summary }

  /// The summary, one choice per line.
  public var description: String { summary.description }

  /// Computes attention into memory of the caller.
  ///
  /// O[q] = Σₖ softmaxₖ(scale · Q[q]·K[k]) · V[k] over the keys that the mask lets q see. With a mask,
  /// slopes or sinks the logits are softcap(scale · Q[q]·K[k]) + mask[q, k] − slope · |position of q − k|,
  /// and exp(sink) is added to the denominator.
  ///
  /// **Shapes.** query [B, Hq, Nq, D], key [B, Hkv, Nk, D], value [B, Hkv, Nk, Dv], output
  /// [B, Hq, Nq, Dv], each float32, float16 or bfloat16, of any strides with neighbours in the last
  /// dimension side by side.
  ///
  /// **Accuracy.** That of the recipe, see ``Precision``; the output is rounded once, to its type.
  ///
  /// **Edge cases.** A row that sees no key gives zeros; Nk = 0 is that case for every row. NaN and
  /// infinite inputs are refused. After an error the output is as it was.
  ///
  /// **Reproducibility.** The bits do not depend on the number of threads, nor on what else is in
  /// the batch.
  ///
  /// - Complexity: O(B · Hq · Nq · Nk · (D + Dv)) operations; memory O(B · Hkv · Nk · (D + Dv)) for
  ///   the quantised keys and values.
  /// - Parameters:
  ///   - query: Q.
  ///   - key: K.
  ///   - value: V.
  ///   - mask: broadcast to [B, Hq, Nq, Nk]: float32, float16 or bfloat16 that is added to the logits,
  ///     or `Bool` (int8), where false (0) hides a key. −∞ hides a key, and so does what is at most
  ///     −2⁸⁰. A key must be let through by this mask and by that of the options.
  ///   - alibiSlopes: [Hq] or [B, Hq], see ``Alibi/slopes(headCount:)``.
  ///   - sinks: [Hq] or [B, Hq]: the logit of a token that takes its part of the softmax and has no
  ///     value (attention sink); it is neither scaled nor capped. −∞ is none.
  ///   - output: O; it may not share memory with an input.
  /// - Throws: `AttentionError` with code `.shapeMismatch`, `.unsupportedElementType`,
  ///   `.invalidArgument`, `.overlappingOutput`, `.nonFiniteInput`, `.valueOutOfRange` or
  ///   `.outOfMemory`.
  public func run(
    query: TensorView,
    key: TensorView,
    value: TensorView,
    mask: TensorView? = nil,
    alibiSlopes: TensorView? = nil,
    sinks: TensorView? = nil,
    into output: borrowing MutableTensorView
  ) throws(AttentionError) {
    var operands = try check(query: query, key: key, value: value, output: output)
    try add(mask: mask, alibiSlopes: alibiSlopes, sinks: sinks, to: &operands)
    try kernel.run(operands)
  }

  /// As ``run(query:key:value:mask:alibiSlopes:sinks:into:)``, for those who time the pre-pass: `beforeTileLoop` is called
  /// once it is done, by a kernel that has one.
  package func run(
    query: TensorView,
    key: TensorView,
    value: TensorView,
    mask: TensorView? = nil,
    alibiSlopes: TensorView? = nil,
    sinks: TensorView? = nil,
    into output: borrowing MutableTensorView,
    beforeTileLoop: () -> Void
  ) throws(AttentionError) {
    var operands = try check(query: query, key: key, value: value, output: output)
    try add(mask: mask, alibiSlopes: alibiSlopes, sinks: sinks, to: &operands)
    guard let staged = kernel as? any StagedKernel else { return try kernel.run(operands) }
    try staged.run(operands, beforeTileLoop: beforeTileLoop)
  }

  /// As ``run(query:key:value:mask:alibiSlopes:sinks:into:)``, with the log-sum-exp of every row.
  ///
  /// - Parameters:
  ///   - query: Q.
  ///   - key: K.
  ///   - value: V.
  ///   - mask: broadcast to [B, Hq, Nq, Nk].
  ///   - alibiSlopes: [Hq] or [B, Hq].
  ///   - sinks: [Hq] or [B, Hq].
  ///   - output: O.
  ///   - logSumExp: the logarithm of the softmax denominator, ln Σₖ exp(logit), over the visible keys,
  ///     in float32, [B, Hq, Nq], of any strides; −∞ for a row that sees no key. It is that of the
  ///     unshifted logits, so partial results merge with those of any other implementation. The sink
  ///     is in it, as it is in the denominator: give sinks to one part only of what
  ///     ``mergeAttention(_:logSumExp:into:logSumExp:)`` puts together.
  /// - Throws: as ``run(query:key:value:mask:alibiSlopes:sinks:into:)``.
  public func run(
    query: TensorView,
    key: TensorView,
    value: TensorView,
    mask: TensorView? = nil,
    alibiSlopes: TensorView? = nil,
    sinks: TensorView? = nil,
    into output: borrowing MutableTensorView,
    logSumExp: borrowing MutableTensorView
  ) throws(AttentionError) {
    var operands = try check(query: query, key: key, value: value, output: output)
    try add(logSumExp: logSumExp, to: &operands)
    try add(mask: mask, alibiSlopes: alibiSlopes, sinks: sinks, to: &operands)
    try kernel.run(operands)
  }

  /// Checks where the log-sum-exp goes.
  package func add(
    logSumExp: borrowing MutableTensorView,
    to operands: inout AttentionOperands
  ) throws(AttentionError) {
    let view = logSumExp.view
    guard view.shape == descriptor.shape.logSumExpShape else {
      throw AttentionError(
        .shapeMismatch,
        "logSumExp has shape \(view.shape), but the plan is for \(descriptor.shape.logSumExpShape)"
      )
    }
    guard view.elementType == .float32 else {
      throw AttentionError(
        .unsupportedElementType,
        "logSumExp is \(view.elementType.rawValue); it must be float32"
      )
    }
    try OverlapCheck.requireDistinctElements(view, name: "logSumExp")
    for (name, other) in [
      ("query", operands.query), ("key", operands.key), ("value", operands.value),
      ("output", operands.output),
    ] {
      try OverlapCheck.requireDisjoint(view, "logSumExp", other.view, name)
    }
    operands.logSumExp = .init(view)
  }

  /// Checks what changes the logits.
  private func add(
    mask: TensorView?,
    alibiSlopes: TensorView?,
    sinks: TensorView?,
    to operands: inout AttentionOperands
  ) throws(AttentionError) {
    let shape = descriptor.shape
    if let mask {
      let operand = try LogitOperands.mask(mask, shape)
      try OverlapCheck.requireDisjoint(operands.output.view, "output", mask, "mask")
      if let logSumExp = operands.logSumExp {
        try OverlapCheck.requireDisjoint(logSumExp.view, "logSumExp", mask, "mask")
      }
      operands.mask = operand
    }
    if let alibiSlopes {
      operands.alibiSlopes = try LogitOperands.perHead(
        alibiSlopes,
        "alibiSlopes",
        shape,
        takesMinusInfinity: false
      )
    }
    if let sinks {
      operands.sinks = try LogitOperands.perHead(sinks, "sinks", shape, takesMinusInfinity: true)
    }
  }

  /// Checks the tensors of a call; no element is looked at, so they may be a device's.
  package func check(
    query: borrowing TensorView,
    key: borrowing TensorView,
    value: borrowing TensorView,
    output: borrowing MutableTensorView
  ) throws(AttentionError) -> AttentionOperands {
    let target = output.view
    try requireOperand(query, "query", queryShape)
    try requireOperand(key, "key", keyShape)
    try requireOperand(value, "value", valueShape)
    try requireOperand(target, "output", outputShape)
    try OverlapCheck.requireDistinctElements(target, name: "output")
    try OverlapCheck.requireDisjoint(target, "output", query, "query")
    try OverlapCheck.requireDisjoint(target, "output", key, "key")
    try OverlapCheck.requireDisjoint(target, "output", value, "value")
    return AttentionOperands(
      query: .init(query),
      key: .init(key),
      value: .init(value),
      output: .init(target)
    )
  }

  private func requireOperand(
    _ view: borrowing TensorView,
    _ name: String,
    _ shape: [Int]
  ) throws(AttentionError) {
    guard view.shape == shape else {
      throw AttentionError(
        .shapeMismatch,
        "\(name) has shape \(view.shape), but the plan is for \(shape)"
      )
    }
    guard view.elementType.isFloatingPointOperand else {
      throw AttentionError(
        .unsupportedElementType,
        "\(name) is \(view.elementType.rawValue); it must be float32, float16 or bfloat16"
      )
    }
    if let last = view.strides.last, last != 1, shape.last != 1 {
      throw AttentionError(
        .invalidArgument,
        "\(name) has stride \(last) in its last dimension; it must be 1"
      )
    }
  }
}
