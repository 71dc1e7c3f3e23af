extension TensorView {
  /// Tokens of one sequence of [B, H, N, D]: [1, H, n, D].
  ///
  /// - Throws: `AttentionError` with code `.invalidArgument` for a rank other than 4 or where there
  ///   is no such sequence or token.
  @_lifetime(copy self)
  package func tokens(_ range: Range<Int>, ofBatch batch: Int = 0) throws(AttentionError)
    -> TensorView
  {
    guard rank == 4, (0..<shape[0]).contains(batch), range.lowerBound >= 0,
      range.upperBound <= shape[2]
    else {
      throw AttentionError(
        .invalidArgument,
        "tokens \(range) of sequence \(batch) are not in shape \(shape)"
      )
    }
    let offset = batch * strides[0] + range.lowerBound * strides[2]
    return unsafe _overrideLifetime(
      TensorView(
        unsafeBase: base + offset * elementType.bitWidth / 8,
        elementType: elementType,
        shape: [1, shape[1], range.count, shape[3]],
        strides: strides
      ),
      copying: self
    )
  }
}
