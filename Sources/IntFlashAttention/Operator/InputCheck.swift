/// What values queries, keys and values may have, and the errors for those that they may not.
package enum InputCheck {
  package enum Tensor: String, CaseIterable, Sendable {
    case query, key, value
  }

  /// The magnitude that no element of an operand in this format may reach.
  ///
  /// 2⁶⁰ keeps every float32 intermediate finite; float16 has its own end of range.
  package static func limit(for format: OperandFormat) -> Float {
    format == .float16 ? 65520 : 0x1p60
  }

  /// The magnitude that D · max|q| · max|k| · |scale| may not reach.
  ///
  /// Logits, shifted by means and counted in 1/64 of a power of two, then stay below 10³⁰, which the
  /// softmax takes as "no key seen".
  package static let logitLimit: Float = 0x1p80

  /// The error for an element that reaches the limit.
  package static func error(
    _ tensor: Tensor?,
    batch: Int,
    head: Int,
    token: Int,
    row: ArraySlice<Float>,
    limit: Float
  ) -> AttentionError {
    let place = "\(tensor?.rawValue ?? "element") at batch \(batch), head \(head), token \(token)"
    let channel = row.firstIndex { !($0.magnitude < limit) } ?? row.startIndex
    let value = row.isEmpty ? 0 : row[channel]
    let index = channel - row.startIndex
    if !value.isFinite {
      return AttentionError(
        .nonFiniteInput,
        "\(place), channel \(index) is \(value); inputs must be finite"
      )
    }
    return AttentionError(
      .valueOutOfRange,
      "\(place), channel \(index) is \(value); this precision takes magnitudes below \(limit)"
    )
  }

  /// Refuses operands whose logits float32 cannot hold.
  package static func requireLogits(
    largestQuery: Float,
    largestKey: Float,
    descriptor: AttentionDescriptor
  ) throws(AttentionError) {
    try requireLogits(
      largestQuery: largestQuery,
      largestKey: largestKey,
      headDimension: descriptor.shape.headDimension,
      softmaxScale: descriptor.softmaxScale
    )
  }

  /// The same for sizes that no descriptor has.
  static func requireLogits(
    largestQuery: Float,
    largestKey: Float,
    headDimension: Int,
    softmaxScale: Float
  ) throws(AttentionError) {
    let bound =
      Double(largestQuery) * Double(largestKey) * Double(headDimension)
      * Double(softmaxScale.magnitude)
    guard bound < Double(logitLimit) else {
      throw AttentionError(
        .valueOutOfRange,
        "largest query \(largestQuery) · largest key \(largestKey) · head dimension "
          + "\(headDimension) · softmax scale \(softmaxScale) reaches "
          + "\(logitLimit), beyond which float32 softmax overflows"
      )
    }
  }
}
