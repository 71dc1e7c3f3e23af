import IntFlashAttention

/// `intfa bench --decode`: one query against caches, beside a plain read of as many bytes.
struct DecodeBench {
  let precisions: [Precision]
  let options: AttentionOptions
  let elementType: ElementType
  let repeatSeconds: Double
  let seed: UInt64

  static let columns = [
    Column("precision", "precision"),
    Column("backend", nil),
    Column("isa", "isa"),
    Column("batch", "B"),
    Column("queryHeads", "Hq"),
    Column("keyValueHeads", "Hkv"),
    Column("queryLength", nil),
    Column("keyValueLength", "Nk"),
    Column("headDimension", "D"),
    Column("threads", "threads"),
    Column("bytesPerToken", "bytes/token", .fixed(1)),
    Column("cacheBytes", "MB", .fixed(1, times: 1e-6)),
    Column("seconds", "ms", .fixed(3, times: 1000)),
    Column("secondsMedian", "median", .fixed(3, times: 1000)),
    Column("tokensPerSecond", "tokens/s", .fixed(1)),
    Column("bytesPerSecond", "GB/s", .fixed(2, times: 1e-9)),
    Column("readBytesPerSecond", "plain read", .fixed(2, times: 1e-9)),
    Column("fractionOfRead", "of read", .percent(1)),
    Column("appendSeconds", "append, µs", .fixed(2, times: 1e6)),
    Column("relativeL1", "rel. L1", .percent(3)),
    Column("cosine", "cosine", .fixed(6)),
  ]

  /// A precision's caches, one per sequence of the batch, and what they are measured with.
  private struct Entry {
    let precision: Precision
    let plan: CachedAttention
    let caches: [KVCache]
    let bandwidth: CPUBandwidth
    let cacheBytes: Double
    var times = Timing()
    var readTimes = Timing()
    var appendTimes = Timing()
    var error = AccuracyReport([], against: [])
  }

  /// Adds a row per precision.
  func measure(
    _ shape: AttentionShape,
    _ additions: borrowing Additions,
    on backend: any AttentionBackend,
    into report: inout Report
  ) throws {
    let operands = try SyntheticInput.outliers.operands(
      shape,
      seed: seed,
      elementType: elementType
    )
    let exact = try operands.exact(lastRows: 1, options, additions)
    // The single queries of all sequences side by side.
    var output = try Tensor(
      .float32,
      shape: [shape.queryHeadCount, shape.batchCount, shape.valueDimension]
    )
    var entries = try precisions.map { precision in
      try entry(precision, shape, operands, on: backend)
    }
    for index in entries.indices {
      try decode(entries[index], operands, additions, into: output.mutableView)
      entries[index].error = AccuracyReport(
        Self.batchMajor(output.copyFloats(), shape),
        against: exact
      )
    }
    let start = ContinuousClock.now
    let limit = Duration.seconds(repeatSeconds * Double(entries.count))
    repeat {
      for index in entries.indices {
        let entry = entries[index]
        entries[index].readTimes.measure { entry.bandwidth.read() }
        try entries[index].times.measure {
          try decode(entry, operands, additions, into: output.mutableView)
        }
        try entries[index].appendTimes.measure { try append(entry, operands) }
        try entry.caches[0].truncate(to: shape.keyValueLength)
      }
    } while ContinuousClock.now - start < limit
    for entry in entries { report.append(cells(entry, shape)) }
  }

  private func entry(
    _ precision: Precision,
    _ shape: AttentionShape,
    _ operands: borrowing Operands,
    on backend: any AttentionBackend
  ) throws -> Entry {
    let length = shape.keyValueLength
    // Room for the token that is appended and taken away again.
    let pages = (length + 64) / 64
    let pool = try KVCachePool(
      keyValueHeadCount: shape.keyValueHeadCount,
      headDimension: shape.headDimension,
      valueDimension: shape.valueDimension,
      capacity: shape.batchCount * pages * 64,
      precision: precision,
      on: backend
    )
    var caches: [KVCache] = []
    for batch in 0..<shape.batchCount {
      let cache = KVCache(in: pool)
      try cache.append(
        key: operands.key.view.tokens(0..<length, ofBatch: batch),
        value: operands.value.view.tokens(0..<length, ofBatch: batch)
      )
      caches.append(cache)
    }
    let bytes =
      pool.bytesPerToken * Double(shape.batchCount * shape.keyValueHeadCount * length)
    return Entry(
      precision: precision,
      plan: try CachedAttention(
        queryHeadCount: shape.queryHeadCount,
        options: options,
        pool: pool
      ),
      caches: caches,
      bandwidth: try CPUBandwidth(byteCount: Int(bytes), threadCount: pool.threadCount),
      cacheBytes: bytes
    )
  }

  /// One query of each sequence: [B, Hq, 1, D] seen as [Hq, B, D].
  private func decode(
    _ entry: Entry,
    _ operands: borrowing Operands,
    _ additions: borrowing Additions,
    into output: borrowing MutableTensorView
  ) throws {
    try entry.plan.run(
      query: operands.query.view.permuted([2, 1, 0, 3]),
      offsets: Array(0...entry.caches.count),
      caches: entry.caches,
      mask: additions.packedMask(),
      alibiSlopes: additions.slopesView,
      sinks: additions.sinksView,
      into: output
    )
  }

  private func append(_ entry: Entry, _ operands: borrowing Operands) throws {
    try entry.caches[0].append(
      key: operands.key.view.tokens(0..<1),
      value: operands.value.view.tokens(0..<1)
    )
  }

  /// [Hq, B, Dv] as [B, Hq, Dv].
  private static func batchMajor(_ output: [Float], _ shape: AttentionShape) -> [Float] {
    let (heads, dimension) = (shape.queryHeadCount, shape.valueDimension)
    return (0..<shape.batchCount).flatMap { batch in
      (0..<heads).flatMap { head in
        let start = (head * shape.batchCount + batch) * dimension
        return output[start..<start + dimension]
      }
    }
  }

  private func cells(_ entry: Entry, _ shape: AttentionShape) -> [Cell] {
    let pool = entry.plan.pool
    let rate = entry.cacheBytes / entry.times.least
    let readRate = Double(entry.bandwidth.byteCount) / entry.readTimes.least
    return [
      .text(entry.precision.rawValue),
      .text(pool.backendName),
      .text(pool.instructionSet),
      .integer(shape.batchCount),
      .integer(shape.queryHeadCount),
      .integer(shape.keyValueHeadCount),
      .integer(1),
      .integer(shape.keyValueLength),
      .integer(shape.headDimension),
      .integer(pool.threadCount),
      .number(pool.bytesPerToken),
      .number(entry.cacheBytes),
      .number(entry.times.least),
      .number(entry.times.median),
      .number(Double(shape.batchCount) / entry.times.least),
      .number(rate),
      .number(readRate),
      .number(rate / readRate),
      .number(entry.appendTimes.least),
      .number(entry.error.relativeL1),
      .number(entry.error.cosine),
    ]
  }
}
