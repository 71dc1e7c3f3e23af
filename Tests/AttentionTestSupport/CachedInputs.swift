public import IntFlashAttention

/// The tokens of one sequence, to be put into a cache in any way.
public struct CachedInputs: Sendable {
  /// Queries, keys and values of as many tokens each.
  public let inputs: TestInputs

  /// A sequence of this many tokens.
  public init(
    queryHeads: Int = 4,
    keyValueHeads: Int = 2,
    length: Int,
    headDimension: Int = 64,
    valueDimension: Int? = nil,
    _ kind: InputKind = .normal,
    seed: UInt64 = 1
  ) throws(AttentionError) {
    inputs = TestInputs(
      try AttentionShape(
        queryHeadCount: queryHeads,
        keyValueHeadCount: keyValueHeads,
        queryLength: length,
        keyValueLength: length,
        headDimension: headDimension,
        valueDimension: valueDimension
      ),
      kind,
      seed: seed
    )
  }

  /// A sequence of given inputs.
  public init(_ inputs: TestInputs) { self.inputs = inputs }

  /// Counts and sizes.
  public var shape: AttentionShape { inputs.shape }

  /// Tokens `range` of every head of [heads, N, dimension], as [heads, n, dimension].
  private func part(_ values: [Float], heads: Int, _ dimension: Int, _ range: Range<Int>) -> [Float]
  {
    let length = values.count / heads / dimension
    return (0..<heads).flatMap { head in
      let start = head * length * dimension
      return values[start + range.lowerBound * dimension..<start + range.upperBound * dimension]
    }
  }

  /// Appends tokens `range` to a cache.
  public func append(
    _ range: Range<Int>,
    to cache: KVCache,
    inputType: ElementType = .float32
  ) throws(AttentionError) {
    let (heads, d, dv) = (shape.keyValueHeadCount, shape.headDimension, shape.valueDimension)
    let key = try Tensor(
      part(inputs.key, heads: heads, d, range),
      shape: [heads, range.count, d],
      elementType: inputType
    )
    let value = try Tensor(
      part(inputs.value, heads: heads, dv, range),
      shape: [heads, range.count, dv],
      elementType: inputType
    )
    try cache.append(key: key.view, value: value.view)
  }

  /// Queries of tokens `range`: [Hq, n, D].
  public func query(_ range: Range<Int>) throws(AttentionError) -> Tensor {
    let (heads, d) = (shape.queryHeadCount, shape.headDimension)
    return try Tensor(
      part(inputs.query, heads: heads, d, range),
      shape: [heads, range.count, d]
    )
  }

  /// Rows `range` of a result, by head.
  public func rows(_ range: Range<Int>, of result: TestResult) -> TestResult {
    let heads = shape.queryHeadCount
    return TestResult(
      output: part(result.output, heads: heads, shape.valueDimension, range),
      logSumExp: part(result.logSumExp, heads: heads, 1, range)
    )
  }

  /// Attention of tokens `range`, the last that are in the cache.
  public func attend(
    _ range: Range<Int>,
    _ cache: KVCache,
    _ options: AttentionOptions = AttentionOptions(mask: .causal),
    _ additions: TestAdditions = TestAdditions()
  ) throws(AttentionError) -> TestResult {
    try Self.attend([(self, range, cache)], options, additions)
  }

  /// Attention of the last tokens of several sequences in one call.
  ///
  /// Additions are as the call takes them: a mask broadcasts to [Hq, T, L], slopes and sinks are [Hq] or
  /// [sequences, Hq].
  public static func attend(
    _ parts: [(inputs: CachedInputs, range: Range<Int>, cache: KVCache)],
    _ options: AttentionOptions = AttentionOptions(mask: .causal),
    _ additions: TestAdditions = TestAdditions()
  ) throws(AttentionError) -> TestResult {
    let (first, pool) = (parts[0].inputs.shape, parts[0].cache.pool)
    let plan = try CachedAttention(
      queryHeadCount: first.queryHeadCount,
      options: options,
      pool: pool
    )
    var offsets = [0]
    for part in parts { offsets.append(offsets[offsets.count - 1] + part.range.count) }
    let total = offsets[offsets.count - 1]
    let (heads, d) = (first.queryHeadCount, first.headDimension)
    var query = [Float](repeating: 0, count: heads * total * d)
    for (index, part) in parts.enumerated() {
      let rows = try part.inputs.query(part.range).copyFloats()
      let count = part.range.count * d
      for head in 0..<heads {
        let start = (head * total + offsets[index]) * d
        query.replaceSubrange(start..<start + count, with: rows[head * count..<(head + 1) * count])
      }
    }
    let queries = try Tensor(query, shape: [heads, total, d])
    var output = try Tensor(
      [Float](repeating: .nan, count: heads * total * first.valueDimension),
      shape: [heads, total, first.valueDimension]
    )
    var logSumExp = try Tensor(
      [Float](repeating: .nan, count: heads * total),
      shape: [heads, total]
    )
    let mask = try Tensor(
      additions.mask?.elements ?? [],
      shape: additions.mask?.shape ?? [0],
      elementType: additions.maskType
    )
    func perHead(_ numbers: [Float]?) throws(AttentionError) -> Tensor {
      let numbers = numbers ?? []
      return try Tensor(
        numbers,
        shape: numbers.count == heads ? [heads] : [numbers.count / heads, heads]
      )
    }
    let slopes = try perHead(additions.alibiSlopes)
    let sinks = try perHead(additions.sinks)
    try plan.run(
      query: queries.view,
      offsets: offsets,
      caches: parts.map(\.cache),
      mask: additions.mask == nil ? nil : mask.view,
      alibiSlopes: additions.alibiSlopes == nil ? nil : slopes.view,
      sinks: additions.sinks == nil ? nil : sinks.view,
      into: output.mutableView,
      logSumExp: logSumExp.mutableView
    )
    return TestResult(output: output.copyFloats(), logSumExp: logSumExp.copyFloats())
  }

  /// An empty cache for these tokens.
  public func cache(
    _ precision: Precision,
    capacity: Int? = nil,
    on backend: any AttentionBackend = CPUBackend()
  ) throws(AttentionError) -> KVCache {
    try KVCache(
      keyValueHeadCount: shape.keyValueHeadCount,
      headDimension: shape.headDimension,
      valueDimension: shape.valueDimension,
      capacity: capacity ?? shape.keyValueLength,
      precision: precision,
      on: backend
    )
  }
}

extension TestResult {
  /// Results of the same heads one after the other, token by token of each.
  public static func joined(_ parts: [TestResult], heads: Int) -> TestResult {
    func join(_ arrays: [[Float]]) -> [Float] {
      (0..<heads).flatMap { head in
        arrays.flatMap { array in
          let count = array.count / heads
          return array[head * count..<(head + 1) * count]
        }
      }
    }
    return TestResult(
      output: join(parts.map(\.output)),
      logSumExp: join(parts.map(\.logSumExp))
    )
  }
}
