extension CachedAttention {
  /// Checks what changes the logits.
  func add(
    mask: TensorView?,
    alibiSlopes: TensorView?,
    sinks: TensorView?,
    to call: inout KVCacheCall
  ) throws(AttentionError) {
    try checkBlocks(call)
    if let mask {
      call.mask = try operand(mask, call)
      try OverlapCheck.requireDisjoint(call.output.view, "output", mask, "mask")
      if let logSumExp = call.logSumExp {
        try OverlapCheck.requireDisjoint(logSumExp.view, "logSumExp", mask, "mask")
      }
    }
    if let alibiSlopes {
      call.alibiSlopes = try LogitOperands.perHead(
        alibiSlopes,
        "alibiSlopes",
        shape(call, batches: call.parts.count),
        takesMinusInfinity: false
      )
    }
    if let sinks {
      call.sinks = try LogitOperands.perHead(
        sinks,
        "sinks",
        shape(call, batches: call.parts.count),
        takesMinusInfinity: true
      )
    }
  }

  private func operand(
    _ mask: borrowing TensorView,
    _ call: KVCacheCall
  ) throws(AttentionError) -> AttentionOperands.Operand {
    let longest = call.parts.reduce(0) { $1.queries.isEmpty ? $0 : max($0, $1.count) }
    let keys = mask.shape.last ?? 1
    guard keys == 1 || keys >= longest else {
      throw AttentionError(
        .shapeMismatch,
        "mask has shape \(mask.shape); its last dimension must be 1 or at least the \(longest) tokens "
          + "of the longest sequence"
      )
    }
    return try LogitOperands.mask(mask, shape(call, keys: max(keys, longest)))
  }

  /// The shape that additions are checked against: the queries of all sequences side by side.
  private func shape(
    _ call: KVCacheCall,
    batches: Int = 1,
    keys: Int = 0
  ) throws(AttentionError) -> AttentionShape {
    try AttentionShape(
      batchCount: batches,
      queryHeadCount: queryHeadCount,
      keyValueHeadCount: pool.keyValueHeadCount,
      queryLength: call.query.shape[2],
      keyValueLength: keys,
      headDimension: pool.headDimension,
      valueDimension: pool.valueDimension
    )
  }

  /// Blocks have lists for the positions of all queries.
  private func checkBlocks(_ call: KVCacheCall) throws(AttentionError) {
    guard let blocks = options.blocks else { return }
    for (index, part) in call.parts.enumerated() where !part.queries.isEmpty {
      guard part.queries.count <= part.count else {
        throw AttentionError(
          .shapeMismatch,
          "blocks: sequence \(index) has \(part.queries.count) queries but \(part.count) tokens, so "
            + "that some queries have no position"
        )
      }
      let length = blocks.queryBlockLength
      guard CPUTileSizes.pieceCount(part.count, length) <= blocks.visible.count else {
        throw AttentionError(
          .shapeMismatch,
          "blocks: there are lists for \(blocks.visible.count) query blocks, but the \(part.count) "
            + "tokens of sequence \(index) are \(CPUTileSizes.pieceCount(part.count, length)) blocks "
            + "of \(length)"
        )
      }
    }
  }
}
