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
    return part(batch..<batch + 1, ofDimension: 0).part(range, ofDimension: 2)
  }

  /// A range of one dimension.
  ///
  /// - Precondition: the dimension exists and has the range.
  @_lifetime(copy self)
  package func part(_ range: Range<Int>, ofDimension axis: Int) -> TensorView {
    let part = TensorGeometry.part(range, ofDimension: axis, shape, strides)
    return unsafe _overrideLifetime(
      TensorView(
        unsafeBase: base + part.offset * elementType.bitWidth / 8,
        elementType: elementType,
        shape: part.shape,
        strides: strides
      ),
      copying: self
    )
  }
}
