/// A validated choice of backend, kernels and tile sizes for one descriptor; run it many times.
///
/// A plan can be shared between threads and prints what it chose. It keeps no tensor; the scratch
/// memory of a finished call stays with it for the next one.
public struct AttentionPlan: Sendable, CustomStringConvertible {
  /// What is computed.
  public let descriptor: AttentionDescriptor
  private let kernel: any AttentionKernel
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
  /// O[q] = Σₖ softmaxₖ(scale · Q[q]·K[k]) · V[k] over the keys that the mask lets q see.
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
  ///   - output: O; it may not share memory with an input.
  /// - Throws: `AttentionError` with code `.shapeMismatch`, `.unsupportedElementType`,
  ///   `.invalidArgument`, `.overlappingOutput`, `.nonFiniteInput`, `.valueOutOfRange` or
  ///   `.outOfMemory`.
  public func run(
    query: TensorView,
    key: TensorView,
    value: TensorView,
    into output: borrowing MutableTensorView
  ) throws(AttentionError) {
    let operands = try check(query: query, key: key, value: value, output: output)
    try kernel.run(operands)
  }

  /// As ``run(query:key:value:into:)``, with the log-sum-exp of every row.
  ///
  /// - Parameters:
  ///   - query: Q.
  ///   - key: K.
  ///   - value: V.
  ///   - output: O.
  ///   - logSumExp: ln Σₖ exp(scale · Q[q]·K[k]) over the visible keys, in float32, [B, Hq, Nq], of
  ///     any strides; −∞ for a row that sees no key. It is that of the unshifted logits, so partial
  ///     results merge with those of any other implementation.
  /// - Throws: as ``run(query:key:value:into:)``.
  public func run(
    query: TensorView,
    key: TensorView,
    value: TensorView,
    into output: borrowing MutableTensorView,
    logSumExp: borrowing MutableTensorView
  ) throws(AttentionError) {
    let plain = try check(query: query, key: key, value: value, output: output)
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
      ("query", plain.query), ("key", plain.key), ("value", plain.value), ("output", plain.output),
    ] {
      try OverlapCheck.requireDisjoint(view, "logSumExp", other.view, name)
    }
    try kernel.run(
      AttentionOperands(
        query: plain.query,
        key: plain.key,
        value: plain.value,
        output: plain.output,
        logSumExp: .init(view)
      )
    )
  }

  private func check(
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
      output: .init(target),
      logSumExp: nil
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
