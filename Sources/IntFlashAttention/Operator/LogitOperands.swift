/// The rules for operands that change logits: a mask, ALiBi slopes, attention sinks.
enum LogitOperands {
  /// A mask as [B or 1, Hq or 1, Nq or 1, Nk or 1]; strides are as they were.
  static func mask(
    _ view: borrowing TensorView,
    _ shape: AttentionShape
  ) throws(AttentionError) -> AttentionOperands.Operand {
    let full = shape.logSumExpShape + [shape.keyValueLength]
    let missing = full.count - view.rank
    let sizes = [Int](repeating: 1, count: max(missing, 0)) + view.shape
    guard missing >= 0, zip(sizes, full).allSatisfy({ $0 == 1 || $0 == $1 }) else {
      throw AttentionError(
        .shapeMismatch,
        "mask has shape \(view.shape), which does not broadcast to [batch, query heads, queries, "
          + "keys] = \(full)"
      )
    }
    let type = view.elementType
    guard type.isFloatingPointOperand || type == .int8 else {
      throw AttentionError(
        .unsupportedElementType,
        "mask is \(type.rawValue); it must be float32, float16 or bfloat16 and is added, or int8, "
          + "where 0 hides a key"
      )
    }
    return unsafe AttentionOperands.Operand(
      TensorView(
        unsafeBase: view.base,
        elementType: type,
        shape: sizes,
        strides: [Int](repeating: 0, count: missing) + view.strides
      )
    )
  }

  /// One finite number per query head, for every batch: [B · Hq].
  ///
  /// - Parameters:
  ///   - view: [Hq], or [B, Hq].
  ///   - name: of the argument.
  ///   - shape: of the call.
  ///   - takesMinusInfinity: whether −∞ is legal.
  /// - Returns: head after head, batch after batch.
  /// - Throws: `AttentionError` with code `.shapeMismatch`, `.unsupportedElementType`,
  ///   `.nonFiniteInput` or `.valueOutOfRange`.
  static func perHead(
    _ view: borrowing TensorView,
    _ name: String,
    _ shape: AttentionShape,
    takesMinusInfinity: Bool
  ) throws(AttentionError) -> [Float] {
    let (batches, heads) = (shape.batchCount, shape.queryHeadCount)
    guard view.shape == [heads] || view.shape == [batches, heads] else {
      throw AttentionError(
        .shapeMismatch,
        "\(name) has shape \(view.shape); it must be [query heads] = [\(heads)] or [batch, query "
          + "heads] = [\(batches), \(heads)]"
      )
    }
    guard view.elementType.isFloatingPointOperand else {
      throw AttentionError(
        .unsupportedElementType,
        "\(name) is \(view.elementType.rawValue); it must be float32, float16 or bfloat16"
      )
    }
    let numbers = view.copyFloats()
    for (index, number) in numbers.enumerated() {
      let place = view.rank == 2 ? "batch \(index / heads), head \(index % heads)" : "head \(index)"
      guard number.isFinite || (takesMinusInfinity && number == -.infinity) else {
        throw AttentionError(
          .nonFiniteInput,
          "\(name) of \(place) is \(number); it must be finite\(takesMinusInfinity ? " or −∞" : "")"
        )
      }
      guard !number.isFinite || number.magnitude < largestMagnitude else {
        throw AttentionError(
          .valueOutOfRange,
          "\(name) of \(place) is \(number); its magnitude must be below \(largestMagnitude)"
        )
      }
    }
    return view.rank == 2 ? numbers : Array(repeating: numbers, count: batches).flatMap(\.self)
  }

  /// What a sink or a slope may not reach: with the longest distance between positions logits stay
  /// below what hides a key.
  private static let largestMagnitude: Float = 0x1p40

  /// At this and below an element of a mask hides its key, as −∞ does.
  static let hidden: Float = -0x1p80

  /// The error for an element of a mask that is NaN, +∞ or too large.
  static func error(
    _ mask: AttentionOperands.Operand,
    batch: Int,
    head: Int,
    row: Int,
    key: Int
  ) -> AttentionError {
    let value = mask.view[batch, head, row, key]
    let place = "mask at batch \(batch), head \(head), query \(row), key \(key) is \(value)"
    return value.isFinite
      ? AttentionError(.valueOutOfRange, "\(place); it must be below \(-hidden)")
      : AttentionError(.nonFiniteInput, "\(place); it must be finite or −∞")
  }
}

extension AttentionOperands.Operand {
  /// Where the elements of a batch, head and row begin, given sizes of 1 that stand for all.
  func broadcastOffset(batch: Int, head: Int, row: Int) -> Int {
    zip([batch, head, row], zip(shape, strides)).reduce(0) { sum, axis in
      sum + (axis.1.0 == 1 ? 0 : axis.0 * axis.1.1)
    }
  }
}
