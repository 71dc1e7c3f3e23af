import IntFlashAttention

/// `intfa run --cache`: keys and values of every sequence into a key/value cache, and its queries.
struct CachedRun {
  let plan: AttentionPlan
  let precision: Precision
  /// Tokens that come at once, with their queries; nil is all.
  let chunk: Int?

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
    var output = try Tensor(.float32, shape: shape.outputShape)
    var sums = try Tensor(.float32, shape: [shape.batchCount * heads, length])
    for batch in 0..<shape.batchCount {
      // Its pages go back before the next sequence takes them.
      let cache = KVCache(in: pool)
      let key = try operands.key.view.operand(operands.layout)
      let value = try operands.value.view.operand(operands.layout)
      let query = try operands.query.view.operand(operands.layout)
      let sinks = try additions.sinks(ofBatch: batch)
      for part in parts(shape) {
        try cache.append(
          key: key.tokens(part.tokens, ofBatch: batch),
          value: value.tokens(part.tokens, ofBatch: batch)
        )
        guard !part.queries.isEmpty else { continue }
        try attention.run(
          query: query.tokens(part.queries, ofBatch: batch),
          offsets: [0, part.queries.count],
          caches: [cache],
          mask: additions.mask(ofBatch: batch, rows: part.queries, shape),
          alibiSlopes: additions.slopesView,
          sinks: sinks.shape == [0] ? nil : sinks.view,
          into: output.mutableView.part(batch..<batch + 1, ofDimension: 0)
            .part(part.queries, ofDimension: 2),
          logSumExp: sums.mutableView.part(batch * heads..<(batch + 1) * heads, ofDimension: 0)
            .part(part.queries, ofDimension: 1)
        )
      }
    }
    return (output.copyFloats(), sums.copyFloats())
  }

  /// Tokens in the order in which they come, with the queries that stand at them; queries before the
  /// first token come with the first.
  private func parts(_ shape: AttentionShape) -> [(tokens: Range<Int>, queries: Range<Int>)] {
    let (keys, queries) = (shape.keyValueLength, shape.queryLength)
    let step = chunk ?? max(keys, 1)
    let ends = Array(stride(from: step, to: keys, by: step)) + [keys]
    let rows = ends.map { max($0 + queries - keys, 0) }
    return zip(zip([0] + ends, ends), zip([0] + rows, rows)).map { tokens, queries in
      (tokens.0..<tokens.1, queries.0..<queries.1)
    }
  }

  /// Refuses chunks where a query would see less than it sees when all tokens have come.
  ///
  /// - Throws: `Failure` with status `usage`.
  static func validate(chunk: Int, _ mask: AttentionMask) throws {
    switch mask {
    case .causal, .sliding(left: _, right: 0): return
    case .prefixCausal(let prefix) where prefix <= chunk: return
    case .prefixCausal(let prefix):
      throw Failure(
        .usage,
        "--chunk is \(chunk) and --prefix \(prefix); the prefix must be in the first chunk"
      )
    case .full, .sliding:
      throw Failure(
        .usage,
        "--chunk with mask '\(mask.name)': queries would see keys of later chunks; give --causal, "
          + "--prefix or --window LEFT,0"
      )
    }
  }
}
