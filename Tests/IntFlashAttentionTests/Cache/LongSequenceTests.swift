import AttentionTestSupport
import IntFlashAttention
import Testing

/// One sequence of 4000 tokens, put into caches in every way: the same bits, and exact attention within
/// the gate of the precision.
@Suite struct LongSequenceTests {
  static let length = 4000

  /// Shared by all cases: drawing and exact attention of so many tokens take a while.
  private struct Long {
    let tokens: CachedInputs
    let exact: TestResult

    init() throws {
      tokens = try CachedInputs(
        queryHeads: 2,
        keyValueHeads: 1,
        length: LongSequenceTests.length,
        headDimension: 16,
        seed: 40
      )
      // float32, which other tests hold against sums in double precision.
      exact = try tokens.inputs.attend(
        Precision.float32.recipe,
        AttentionOptions(mask: .causal),
        on: CPUBackend()
      )
    }
  }

  private static let long = Result { try Long() }

  /// Tokens that are attended to one by one: all around the beginnings of tiles, some elsewhere.
  private static let singles = {
    #if DEBUG
    let step = 61
    #else
    let step = 1
    #endif
    return (0..<length).filter { $0 % step == 0 || ($0 + 65) % 128 < 2 || $0 > length - 4 }
  }()

  private func pool(_ precision: Precision, pages: Int = 80) throws -> KVCachePool {
    try KVCachePool(
      keyValueHeadCount: 1,
      headDimension: 16,
      capacity: 64 * pages,
      precision: precision
    )
  }

  /// Chunks that end at `ends`, each attended to when it has come.
  private func chunks(
    _ tokens: CachedInputs,
    _ ends: [Int],
    _ cache: KVCache
  ) throws -> TestResult {
    var parts: [TestResult] = []
    for end in ends {
      let range = cache.count..<end
      try tokens.append(range, to: cache)
      parts.append(try tokens.attend(range, cache))
    }
    return .joined(parts, heads: tokens.shape.queryHeadCount)
  }

  private func expectGate(
    _ result: TestResult,
    _ exact: TestResult,
    _ precision: Precision,
    _ comment: Comment
  ) {
    let report = AccuracyReport(result.output, against: exact.output)
    let bound = precision.gate.normal(keyValueLength: Self.length)
    #expect(report.relativeL1 <= bound, "\(comment)")
    let isNear = zip(result.logSumExp, exact.logSumExp).allSatisfy {
      ($0 - $1).magnitude <= precision.logSumExpBound
    }
    #expect(isNear, "\(comment): log-sum-exp")
  }

  @Test(arguments: KVCacheTests.precisions)
  func everyWayGivesTheSame(_ precision: Precision) throws {
    let long = try Self.long.get()
    let (tokens, length) = (long.tokens, Self.length)
    let isInt4 = precision == .int4 || precision == .int4KeyValue

    let cache = KVCache(in: try pool(precision))
    try tokens.append(0..<length, to: cache)
    let whole = try tokens.attend(0..<length, cache)
    expectGate(whole, long.exact, precision, "one prefill")

    // Chunks that end with tiles; 4-bit tiles are then complete when they are attended to.
    let tiles = [64, 192, 1088, 1216, 3136, length]
    let chunked = try chunks(tokens, tiles, KVCache(in: try pool(precision)))
    #expect(chunked == whole, "chunks")

    // Chunks of any length.
    let any = [1, 50, 70, 200, 777, 2049, length]
    let ragged = try chunks(tokens, any, KVCache(in: try pool(precision)))
    expectGate(ragged, long.exact, precision, "chunks of any length")
    #expect(isInt4 || ragged == whole, "chunks of any length")

    try singles(long, whole, precision)
    try scattered(long, whole, precision)
    try forked(long, whole, precision)
    try batch(long, whole, precision)
  }

  /// Token by token.
  private func singles(_ long: Long, _ whole: TestResult, _ precision: Precision) throws {
    let cache = KVCache(in: try pool(precision))
    let tokens = long.tokens
    var parts: [TestResult] = []
    for token in 0..<Self.length {
      try tokens.append(token..<token + 1, to: cache)
      guard parts.count < Self.singles.count, Self.singles[parts.count] == token else { continue }
      parts.append(try tokens.attend(token..<token + 1, cache))
    }
    let heads = tokens.shape.queryHeadCount
    func taken(_ result: TestResult) -> TestResult {
      .joined(Self.singles.map { tokens.rows($0..<$0 + 1, of: result) }, heads: heads)
    }
    let result = TestResult.joined(parts, heads: heads)
    expectGate(result, taken(long.exact), precision, "token by token")
    let isInt4 = precision == .int4 || precision == .int4KeyValue
    #expect(isInt4 || result == taken(whole), "token by token")
    // What is in the cache in the end is the same, whatever rows saw in between.
    let last = Self.length - 100..<Self.length
    let again = try tokens.attend(last, cache)
    #expect(isInt4 || again == tokens.rows(last, of: whole))
  }

  /// Pages in an order of chance.
  private func scattered(_ long: Long, _ whole: TestResult, _ precision: Precision) throws {
    var random = TestRandom(seed: 9)
    let pool = try pool(precision, pages: 90)
    var others = (0..<90).map { _ in KVCache(in: pool) }
    for other in others { try long.tokens.append(0..<1, to: other) }
    others.shuffle(using: &random)
    while let other = others.popLast() { try other.truncate(to: 0) }
    let cache = KVCache(in: pool)
    let result = try chunks(long.tokens, [64, 192, Self.length], cache)
    #expect(result == whole, "pages in an order of chance")
  }

  /// A fork that went another way, came back and took over.
  private func forked(_ long: Long, _ whole: TestResult, _ precision: Precision) throws {
    let pool = try pool(precision, pages: 140)
    let cache = KVCache(in: pool)
    // Both at tiles, so that no 4-bit tile is cut.
    let (first, second) = (64 + 128 * 9, 64 + 128 * 20)
    try long.tokens.append(0..<second, to: cache)
    let fork = cache.fork()
    try long.tokens.append(0..<300, to: fork)
    try fork.truncate(to: first)
    try long.tokens.append(100..<230, to: fork)
    try fork.truncate(to: first)
    let last = first..<Self.length
    try long.tokens.append(first..<Self.length, to: fork)
    let result = try long.tokens.attend(last, fork)
    #expect(result == long.tokens.rows(last, of: whole), "fork")
    try long.tokens.append(second..<Self.length, to: cache)
    let untouched = try long.tokens.attend(0..<Self.length, cache)
    #expect(untouched == whole, "what was forked")
  }

  /// In one call with other sequences, on any number of threads.
  private func batch(_ long: Long, _ whole: TestResult, _ precision: Precision) throws {
    let tokens = long.tokens
    let pool = try pool(precision, pages: 140)
    var caches: [KVCache] = []
    for length in [130, Self.length, 1] {
      let cache = KVCache(in: pool)
      try tokens.append(0..<length, to: cache)
      caches.append(cache)
    }
    let last = Self.length - 700..<Self.length
    let result = try CachedInputs.attend([
      (tokens, 129..<130, caches[0]), (tokens, last, caches[1]), (tokens, 0..<1, caches[2]),
    ])
    let alone = [
      try tokens.attend(129..<130, caches[0]), tokens.rows(last, of: whole),
      try tokens.attend(0..<1, caches[2]),
    ]
    #expect(result == .joined(alone, heads: 2), "a batch")
  }
}
