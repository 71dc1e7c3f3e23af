/// Scaled dot-product attention in one call: softmax(scale · Q Kᵀ) V.
///
/// For repeated calls of one shape, make an ``AttentionPlan`` and keep it.
///
/// **Shapes.** query [B, Hq, Nq, D], key [B, Hkv, Nk, D], value [B, Hkv, Nk, Dv]; a tensor of rank 3
/// is a batch of one. Hq is a multiple of Hkv (grouped-query). float32, float16 or bfloat16.
///
/// **Accuracy.** That of `precision`; for the default `int8` the bound is 1.3 % relative L1 against
/// float64 on activations of a language model, see ``Precision/gate``.
///
/// **Edge cases.** A row that sees no key gives zeros. NaN and infinite inputs are refused.
///
/// - Complexity: O(B · Hq · Nq · Nk · (D + Dv)) operations, memory linear in Nk.
/// - Parameters:
///   - query: Q.
///   - key: K.
///   - value: V.
///   - mask: what is added to the logits or hides keys, broadcast to [B, Hq, Nq, Nk].
///   - alibiSlopes: [Hq] or [B, Hq].
///   - sinks: [Hq] or [B, Hq].
///   - options: softmax scale, soft cap, mask.
///   - precision: the recipe.
///   - backend: where it is computed.
/// - Returns: O as float32, [B, Hq, Nq, Dv].
/// - Throws: `AttentionError`; see ``AttentionPlan/run(query:key:value:mask:alibiSlopes:sinks:into:)``.
public func attention(
  query: TensorView,
  key: TensorView,
  value: TensorView,
  mask: TensorView? = nil,
  alibiSlopes: TensorView? = nil,
  sinks: TensorView? = nil,
  options: AttentionOptions = AttentionOptions(),
  precision: Precision = .int8,
  on backend: any AttentionBackend = CPUBackend()
) throws(AttentionError) -> Tensor {
  let (query, key, value) = (try query.operand(), try key.operand(), try value.operand())
  let shape = try AttentionShape(query: query, key: key, value: value)
  let plan = try AttentionPlan(shape, precision: precision, options: options, on: backend)
  var output = try Tensor(.float32, shape: shape.outputShape)
  try plan.run(
    query: query,
    key: key,
    value: value,
    mask: mask,
    alibiSlopes: alibiSlopes,
    sinks: sinks,
    into: output.mutableView
  )
  return output
}

extension AttentionShape {
  /// The shape that three operands have together.
  ///
  /// - Parameters:
  ///   - query: [B, Hq, Nq, D].
  ///   - key: [B, Hkv, Nk, D].
  ///   - value: [B, Hkv, Nk, Dv].
  /// - Throws: `AttentionError` with code `.shapeMismatch` where they do not fit together; otherwise
  ///   as ``init(batchCount:queryHeadCount:keyValueHeadCount:queryLength:keyValueLength:headDimension:valueDimension:)``.
  public init(
    query: borrowing TensorView,
    key: borrowing TensorView,
    value: borrowing TensorView
  ) throws(AttentionError) {
    let (q, k, v) = (query.shape, key.shape, value.shape)
    for (name, shape) in [("query", q), ("key", k), ("value", v)] where shape.count != 4 {
      throw AttentionError(
        .shapeMismatch,
        "\(name) has shape \(shape); it must be [batch, heads, tokens, dimension]"
      )
    }
    for (what, axis, name, other, expected) in [
      ("batch", 0, "key", k, q), ("batch", 0, "value", v, q), ("head count", 1, "value", v, k),
      ("length", 2, "value", v, k), ("head dimension", 3, "key", k, q),
    ] where other[axis] != expected[axis] {
      throw AttentionError(
        .shapeMismatch,
        "\(name) has shape \(other), whose \(what) \(other[axis]) differs from the "
          + "\(expected[axis]) of \(axis == 0 || axis == 3 ? "query" : "key") \(expected)"
      )
    }
    try self.init(
      batchCount: q[0],
      queryHeadCount: q[1],
      keyValueHeadCount: k[1],
      queryLength: q[2],
      keyValueLength: k[2],
      headDimension: q[3],
      valueDimension: v[3]
    )
  }
}
