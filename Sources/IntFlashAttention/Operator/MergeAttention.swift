/// Adds a part of attention to what was merged so far: the same queries over other keys.
///
/// Softmax over all keys is the mean of the softmaxes over parts of them, weighted by their
/// denominators:
/// ```
/// l = exp(logSumExp of part) + exp(logSumExp so far)
/// O = part · exp(logSumExp of part) / l + O so far · exp(logSumExp so far) / l
/// ```
/// So prefixes that many sequences share, splits of the keys over machines, and caches of different
/// precision are computed by themselves and put together here. Parts come from any backend, precision
/// or other library whose log-sum-exp is that of the logits as they are.
///
/// **Accuracy.** Computed in double precision and rounded once to the type of the output, and to
/// float32 for the log-sum-exp. **Order.** Parts are added in the order of the calls; the same order
/// gives the same bits, another one may differ in the last bit. For bits that do not depend on it,
/// keep float32 outputs and call in key order.
///
/// **Edge cases.** A part with log-sum-exp −∞ saw no key and changes nothing. Where it is −∞ so far,
/// whatever the output holds, the part is copied; so begin with a log-sum-exp of −∞ everywhere and
/// zeros, which stay where no part saw a key.
///
/// **Sinks.** A sink is in the denominator of its part: give it to exactly one.
///
/// - Complexity: O(B · H · Nq · Dv), no memory.
/// - Parameters:
///   - part: the output of one part, [B, H, Nq, Dv], float32, float16 or bfloat16.
///   - partLogSumExp: its log-sum-exp, [B, H, Nq], float32.
///   - output: what was merged so far, of the part's shape; float32, float16 or bfloat16.
///   - logSumExp: of what was merged so far, float32.
/// - Throws: `AttentionError` with code `.shapeMismatch`, `.unsupportedElementType`,
///   `.invalidArgument`, `.overlappingOutput`, or `.nonFiniteInput` for a log-sum-exp that is NaN or
///   +∞; then nothing has been written.
public func mergeAttention(
  _ part: TensorView,
  logSumExp partLogSumExp: TensorView,
  into output: borrowing MutableTensorView,
  logSumExp: borrowing MutableTensorView
) throws(AttentionError) {
  let (target, sums) = (output.view, logSumExp.view)
  let shape = part.shape
  guard shape.count == 4, AttentionShape.supportedDimensions.contains(shape[3]) else {
    throw AttentionError(
      .shapeMismatch,
      "part has shape \(shape); it must be [batch, heads, queries, dimension] with a dimension of "
        + "1 to \(AttentionShape.supportedDimensions.upperBound)"
    )
  }
  try MergeCheck.requireRows(part, "part", shape)
  try MergeCheck.requireRows(target, "output", shape)
  try MergeCheck.requireSums(partLogSumExp, "part's logSumExp", Array(shape.dropLast()))
  try MergeCheck.requireSums(sums, "logSumExp", Array(shape.dropLast()))
  try OverlapCheck.requireDistinctElements(target, name: "output")
  try OverlapCheck.requireDistinctElements(sums, name: "logSumExp")
  try OverlapCheck.requireDisjoint(target, "output", part, "part")
  try OverlapCheck.requireDisjoint(target, "output", partLogSumExp, "part's logSumExp")
  try OverlapCheck.requireDisjoint(target, "output", sums, "logSumExp")
  try OverlapCheck.requireDisjoint(sums, "logSumExp", part, "part")
  try OverlapCheck.requireDisjoint(sums, "logSumExp", partLogSumExp, "part's logSumExp")

  CPUMerge.add(
    part: AttentionOperands.Operand(part),
    logSumExp: AttentionOperands.Operand(partLogSumExp),
    to: AttentionOperands.Operand(target),
    AttentionOperands.Operand(sums)
  )
}

/// The rules for what is merged.
private enum MergeCheck {
  static func requireRows(
    _ view: borrowing TensorView,
    _ name: String,
    _ shape: [Int]
  ) throws(AttentionError) {
    guard view.shape == shape else {
      throw AttentionError(.shapeMismatch, "\(name) has shape \(view.shape), but part has \(shape)")
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

  static func requireSums(
    _ view: borrowing TensorView,
    _ name: String,
    _ shape: [Int]
  ) throws(AttentionError) {
    guard view.shape == shape else {
      throw AttentionError(
        .shapeMismatch,
        "\(name) has shape \(view.shape); for this part it must be \(shape)"
      )
    }
    guard view.elementType == .float32 else {
      throw AttentionError(
        .unsupportedElementType,
        "\(name) is \(view.elementType.rawValue); it must be float32"
      )
    }
    for (index, sum) in view.copyFloats().enumerated() where !(sum < .infinity) {
      let (head, row) = index.quotientAndRemainder(dividingBy: shape[2])
      throw AttentionError(
        .nonFiniteInput,
        "\(name) at batch \(head / shape[1]), head \(head % shape[1]), query \(row) is \(sum); it "
          + "must be finite or −∞"
      )
    }
  }
}
