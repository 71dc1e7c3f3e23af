import IntFlashAttention

/// What a call may have beside query, key and value; tensors without elements are absent.
struct Additions: ~Copyable {
  private let mask: Tensor
  private let alibiSlopes: Tensor
  private let sinks: Tensor

  /// Nothing.
  init() throws(AttentionError) {
    try self.init(mask: Self.nothing(), alibiSlopes: [], sinks: Self.nothing())
  }

  /// Takes what there is.
  init(
    mask: consuming Tensor,
    alibiSlopes: [Float],
    sinks: consuming Tensor
  ) throws(AttentionError) {
    self.alibiSlopes = try Tensor(alibiSlopes, shape: [alibiSlopes.count])
    self.mask = mask
    self.sinks = sinks
  }

  /// What stands for an absent tensor.
  static func nothing() throws(AttentionError) -> Tensor { try Tensor(.float32, shape: [0]) }

  var maskView: TensorView? {
    @_lifetime(borrow self)
    get { mask.shape == [0] ? nil : mask.view }
  }
  var slopesView: TensorView? {
    @_lifetime(borrow self)
    get { alibiSlopes.shape == [0] ? nil : alibiSlopes.view }
  }
  var sinksView: TensorView? {
    @_lifetime(borrow self)
    get { sinks.shape == [0] ? nil : sinks.view }
  }

  /// The mask as attention to caches takes it, with the single queries of all sequences side by side:
  /// [B, Hq, 1, Nk] seen as [Hq, B, Nk].
  ///
  /// - Throws: `AttentionError` for a mask that does not broadcast.
  @_lifetime(borrow self)
  func packedMask() throws(AttentionError) -> TensorView? {
    guard let mask = maskView, mask.rank == 4 else { return maskView }
    return try mask.permuted([2, 1, 0, 3])
  }

  /// Query rows of the mask of one sequence of [B, Hq, Nq, Nk].
  ///
  /// - Throws: `AttentionError` for a mask that does not broadcast.
  @_lifetime(borrow self)
  func mask(
    ofBatch batch: Int,
    rows: Range<Int>,
    _ shape: AttentionShape
  ) throws(AttentionError) -> TensorView? {
    guard var mask = maskView else { return nil }
    if mask.rank == 4, mask.shape[0] > 1 {
      guard mask.shape[0] == shape.batchCount else {
        throw AttentionError(
          .shapeMismatch,
          "mask has shape \(mask.shape), but there are \(shape.batchCount) sequences"
        )
      }
      mask = mask.part(batch..<batch + 1, ofDimension: 0)
    }
    guard mask.rank >= 2, mask.shape[mask.rank - 2] != 1 else { return mask }
    guard mask.shape[mask.rank - 2] == shape.queryLength else {
      throw AttentionError(
        .shapeMismatch,
        "mask has shape \(mask.shape); it must have 1 row or those of the \(shape.queryLength) "
          + "queries"
      )
    }
    return mask.part(rows, ofDimension: mask.rank - 2)
  }

  /// The sinks of one sequence, [Hq], without elements where there are none.
  ///
  /// - Throws: `AttentionError` where there is no memory.
  func sinks(ofBatch batch: Int) throws(AttentionError) -> Tensor {
    let numbers = sinks.copyFloats()
    guard sinks.shape.count == 2, batch < sinks.shape[0] else {
      return try Tensor(numbers, shape: sinks.shape)
    }
    let heads = sinks.shape[1]
    return try Tensor(Array(numbers[batch * heads..<(batch + 1) * heads]), shape: [heads])
  }

  /// The same for the last query rows of each head.
  ///
  /// - Throws: `AttentionError` where there is no memory.
  func lastRows(_ rows: Int, queryLength: Int) throws(AttentionError) -> Additions {
    var (shape, elements) = (mask.shape, mask.view.copyFloats())
    if shape.count > 1, shape[shape.count - 2] == queryLength {
      let keys = shape[shape.count - 1]
      let head = queryLength * keys
      elements = stride(from: 0, to: elements.count, by: max(head, 1)).flatMap { start in
        elements[(start + head - rows * keys)..<(start + head)]
      }
      shape[shape.count - 2] = rows
    }
    return try Additions(
      mask: Tensor(elements, shape: shape, elementType: mask.elementType),
      alibiSlopes: alibiSlopes.copyFloats(),
      sinks: Tensor(sinks.copyFloats(), shape: sinks.shape)
    )
  }
}
