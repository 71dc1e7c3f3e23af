import IntFlashAttention

/// `intfa run --cache`: keys and values of every sequence into a key/value cache, then all its queries.
struct CachedRun {
  let plan: AttentionPlan
  let precision: Precision

  /// Output [B, Hq, Nq, Dv] and log-sum-exp [B, Hq, Nq], row-major.
  func run(
    _ operands: borrowing Operands,
    _ additions: borrowing Additions,
    on backend: any AttentionBackend
  ) throws -> (output: [Float], logSumExp: [Float]) {
    let shape = plan.descriptor.shape
    let pool = try KVCachePool(
      keyValueHeadCount: shape.keyValueHeadCount,
      headDimension: shape.headDimension,
      valueDimension: shape.valueDimension,
      capacity: max(shape.keyValueLength, 1),
      precision: precision,
      on: backend
    )
    let attention = try CachedAttention(
      queryHeadCount: shape.queryHeadCount,
      options: plan.descriptor.options,
      pool: pool
    )
    let (heads, length) = (shape.queryHeadCount, shape.queryLength)
    var (outputs, sums): ([Float], [Float]) = ([], [])
    for batch in 0..<shape.batchCount {
      // Its pages go back before the next sequence takes them.
      let cache = KVCache(in: pool)
      let key = try operands.key.view.operand(operands.layout)
      let value = try operands.value.view.operand(operands.layout)
      let tokens = 0..<shape.keyValueLength
      try cache.append(
        key: key.tokens(tokens, ofBatch: batch),
        value: value.tokens(tokens, ofBatch: batch)
      )
      let query = try operands.query.view.operand(operands.layout)
      let sinks = try additions.sinks(ofBatch: batch)
      var output = try Tensor(.float32, shape: [heads, length, shape.valueDimension])
      var logSumExp = try Tensor(.float32, shape: [heads, length])
      try attention.run(
        query: query.tokens(0..<length, ofBatch: batch),
        offsets: [0, length],
        caches: [cache],
        mask: additions.mask(ofBatch: batch),
        alibiSlopes: additions.slopesView,
        sinks: sinks.shape == [0] ? nil : sinks.view,
        into: output.mutableView,
        logSumExp: logSumExp.mutableView
      )
      outputs += output.copyFloats()
      sums += logSumExp.copyFloats()
    }
    return (outputs, sums)
  }
}
