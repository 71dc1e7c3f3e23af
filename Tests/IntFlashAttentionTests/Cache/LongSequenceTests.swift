import AttentionTestSupport
import IntFlashAttention
import Testing

/// One sequence of 4,000 tokens that comes into a cache in every way there is.
@Suite struct LongSequenceTests {
  static let length = 4000
  /// Where 4-bit groups are complete: a chunk, a fork or a truncation there leaves no trace.
  static let tileEnds = [64, 192, 1088, 1728, 2496, 3904]

  static let sequence = try? CachedInputs(
    queryHeads: 2,
    keyValueHeads: 1,
    length: length,
    headDimension: 16,
    seed: 40
  )

  /// Exact attention; the reference would take minutes where it is not optimised.
  static let exact: [Float]? = {
    #if DEBUG
      let backend = CPUBackend()
    #else
      let backend = ReferenceBackend()
    #endif
    return try? sequence?.inputs
      .attend(Precision.float32.recipe, AttentionOptions(mask: .causal), on: backend).output
  }()

  /// How the tokens come. What `int4` gives depends on where chunks end, so it has ends of its own.
  enum Way: CaseIterable, Sendable {
    case prefill, chunksOfTiles, chunks, tokenByToken, scatteredPages, forkedAndTruncated, ragged

    /// Whether 4-bit groups are complete wherever the sequence is attended to or cut.
    var keepsTiles: Bool { ![.chunks, .tokenByToken].contains(self) }
  }

  private func pool(_ precision: Precision, pageLength: Int = 64) throws -> KVCachePool {
    try KVCachePool(
      keyValueHeadCount: 1,
      headDimension: 16,
      capacity: 4 * Self.length,
      pageLength: pageLength,
      precision: precision
    )
  }

  /// Chunks with these ends, each attended to when it has come.
  private func chunks(
    _ sequence: CachedInputs,
    ends: [Int],
    _ cache: KVCache
  ) throws -> TestResult {
    var parts: [TestResult] = []
    for end in ends {
      let begin = cache.count
      try sequence.append(begin..<end, to: cache)
      parts.append(try sequence.attend(begin..<end, cache))
    }
    return .joined(parts, heads: sequence.shape.queryHeadCount)
  }

  private func result(
    _ way: Way,
    _ precision: Precision,
    _ sequence: CachedInputs
  ) throws -> TestResult {
    let pool = try pool(precision, pageLength: way == .scatteredPages ? 192 : 64)
    let cache = KVCache(in: pool)
    let all = 0..<Self.length
    switch way {
    case .prefill:
      try sequence.append(all, to: cache)
      return try sequence.attend(all, cache)
    case .chunksOfTiles:
      return try chunks(sequence, ends: Self.tileEnds + [Self.length], cache)
    case .chunks:
      return try chunks(sequence, ends: [1, 63, 331, 332, 1025, 2777, 3999, Self.length], cache)
    case .tokenByToken:
      return try chunks(sequence, ends: Array(1...Self.length), cache)
    case .scatteredPages:
      // Sequences of one page each; what is given back lies in no order.
      var others = try (0..<30).map { _ in
        let other = KVCache(in: pool)
        try sequence.append(0..<100, to: other)
        return other
      }
      var random = TestRandom(seed: 6)
      others.shuffle(using: &random)
      while others.count > 8 { others.removeLast() }
      try sequence.append(all, to: cache)
      return try sequence.attend(all, cache)
    case .forkedAndTruncated:
      try sequence.append(0..<2496, to: cache)
      let fork = cache.fork()
      try sequence.append(2496..<3000, to: cache)
      try fork.truncate(to: 1728)
      let again = fork.fork()
      try sequence.append(0..<77, to: fork)
      try sequence.append(1728..<Self.length, to: again)
      return try sequence.attend(all, again)
    case .ragged:
      try sequence.append(all, to: cache)
      let short = KVCache(in: pool)
      try sequence.append(0..<130, to: short)
      let together = try CachedInputs.attend([
        (sequence, 129..<130, short), (sequence, all, cache), (sequence, 0..<130, short),
      ])
      return sequence.rows(1..<1 + Self.length, of: together)
    }
  }

  @Test(arguments: KVCacheTests.precisions)
  func everyWayGivesTheSameBits(_ precision: Precision) throws {
    let sequence = try #require(Self.sequence)
    let exact = try #require(Self.exact)
    let isInt4 = precision == .int4 || precision == .int4KeyValue
    let expected = try result(.prefill, precision, sequence)
    for way in Way.allCases {
      let result = try result(way, precision, sequence)
      if !isInt4 || way.keepsTiles { #expect(result == expected, "\(way)") }
      let error = AccuracyReport(result.output, against: exact).relativeL1
      #expect(error <= precision.gate.normal(keyValueLength: Self.length), "\(way)")
    }
  }
}
