import IntFlashAttention

extension AttentionOperands.Operand {
  /// The operand with a batch of one in front where it has none.
  func batched(_ name: String, rank: Int) throws(AttentionError) -> Self {
    guard shape.count == rank - 1 || shape.count == rank else {
      throw AttentionError(
        .shapeMismatch,
        "\(name) has shape \(shape); it must have \(rank) dimensions, or \(rank - 1) for a batch of "
          + "one"
      )
    }
    guard shape.count < rank else { return self }
    return unsafe Self(
      TensorView(
        unsafeBase: UnsafeRawPointer(base),
        elementType: elementType,
        shape: [1] + shape,
        strides: [0] + strides
      )
    )
  }
}

extension CTensor {
  /// Refuses what nothing can be written to.
  static func requireOutput(
    _ output: AttentionOperands.Operand,
    _ name: String,
    shape: [Int]
  ) throws(AttentionError) {
    guard output.shape == shape else {
      throw AttentionError(
        .shapeMismatch,
        "\(name) has shape \(output.shape); it must be \(shape)"
      )
    }
    guard output.elementType.isFloatingPointOperand else {
      throw AttentionError(
        .unsupportedElementType,
        "\(name) is \(output.elementType.rawValue); it must be float32, float16 or bfloat16"
      )
    }
    try OverlapCheck.requireDistinctElements(output.view, name: name)
  }

  /// Writes row-major values to an output of the same shape, rounded to its type.
  static func write(_ values: borrowing TensorView, to output: AttentionOperands.Operand) {
    let target = output.mutableView
    let columns = values.shape.last ?? 1
    let step = output.strides.last ?? 1
    var row = 0
    output.view.forEachRow { offset in
      for column in 0..<columns {
        target.store(values.float(atOffset: row + column), atOffset: offset + column * step)
      }
      row += columns
    }
  }
}
