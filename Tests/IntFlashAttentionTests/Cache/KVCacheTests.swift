import AttentionTestSupport
import IntFlashAttention
import Testing

/// A sequence gives the same whatever way it came into a cache.
@Suite struct KVCacheTests {
  static let precisions: [Precision] = [.int8, .int4, .int4KeyValue, .bfloat16, .float32]

  /// One prefill of everything.
  private func whole(
    _ sequence: CachedInputs,
    _ precision: Precision,
    on backend: any AttentionBackend = CPUBackend()
  ) throws -> TestResult {
    let cache = try sequence.cache(precision, on: backend)
    let range = 0..<sequence.shape.keyValueLength
    try sequence.append(range, to: cache)
    return try sequence.attend(range, cache)
  }

  /// Chunks of these lengths, each attended to when it has come.
  private func chunked(
    _ sequence: CachedInputs,
    _ precision: Precision,
    ends: [Int],
    on backend: any AttentionBackend = CPUBackend()
  ) throws -> TestResult {
    let cache = try sequence.cache(precision, on: backend)
    var parts: [TestResult] = []
    var begin = 0
    for end in ends {
      try sequence.append(begin..<end, to: cache)
      parts.append(try sequence.attend(begin..<end, cache))
      begin = end
    }
    return .joined(parts, heads: sequence.shape.queryHeadCount)
  }

  private func expectGate(
    _ result: TestResult,
    _ sequence: CachedInputs,
    _ precision: Precision,
    _ comment: Comment
  ) throws {
    let exact = try sequence.inputs.exact(AttentionOptions(mask: .causal))
    let report = AccuracyReport(result.output, against: exact.output)
    let bound = precision.gate.normal(keyValueLength: sequence.shape.keyValueLength)
    #expect(report.relativeL1 <= bound, "\(comment)")
    for (a, b) in zip(result.logSumExp, exact.logSumExp)
    where !((a - b).magnitude <= precision.logSumExpBound) {
      Issue.record("\(comment): log-sum-exp \(a), not \(b)")
      return
    }
  }

  @Test(arguments: InstructionSet.supported, precisions)
  func prefillIsWithinTheGate(_ set: InstructionSet, _ precision: Precision) throws {
    for length in [1, 63, 64, 65, 130, 200, 321] {
      let sequence = try CachedInputs(length: length)
      let result = try whole(sequence, precision, on: CPUBackend(instructionSet: set))
      try expectGate(result, sequence, precision, "\(length) tokens")
    }
  }

  @Test(arguments: InstructionSet.supported, [Precision.int8, .bfloat16, .float32])
  func tokenByTokenGivesTheSameBits(_ set: InstructionSet, _ precision: Precision) throws {
    let sequence = try CachedInputs(length: 333)
    let backend = CPUBackend(instructionSet: set)
    let expected = try whole(sequence, precision, on: backend)
    let result = try chunked(sequence, precision, ends: Array(1...333), on: backend)
    #expect(result.output == expected.output)
    #expect(result.logSumExp == expected.logSumExp)
  }

  @Test(arguments: precisions)
  func chunksAtTilesGiveTheSameBits(_ precision: Precision) throws {
    let sequence = try CachedInputs(length: 448)
    let expected = try whole(sequence, precision)
    let result = try chunked(sequence, precision, ends: [64, 192, 448])
    #expect(result.output == expected.output)
    #expect(result.logSumExp == expected.logSumExp)
  }

  /// Two sequences with a common beginning: one is a fork of the other that went on by itself.
  ///
  /// Four-bit groups that were full do not get their eight bits back.
  @Test(arguments: [Precision.int8, .bfloat16, .float32])
  func forksAndTruncationsLeaveTheOthersAsTheyWere(_ precision: Precision) throws {
    let first = try CachedInputs(length: 300, seed: 1)
    let expected = try whole(first, precision)
    // Room for both: the fork owns what follows the shared tokens.
    let cache = try first.cache(precision, capacity: 700)
    try first.append(0..<200, to: cache)
    let fork = cache.fork()
    let second = try CachedInputs(length: 300, seed: 2)
    try second.append(200..<300, to: fork)
    try first.append(200..<300, to: cache)
    let untouched = try first.attend(0..<300, cache) == expected
    #expect(untouched)
    try fork.truncate(to: 200)
    try first.append(200..<300, to: fork)
    let repeated = try first.attend(0..<300, fork) == expected
    #expect(repeated)
  }

  /// Below 64 tokens statistics are taken anew, and with them what counts as an outlier.
  @Test func outliersOfForgottenStatisticsAreForgotten() throws {
    var inputs = TestInputs(try CachedInputs(length: 200).shape, .normal, seed: 6)
    let d = inputs.shape.valueDimension
    let other = inputs
    for head in 0..<2 {
      for token in 0..<200 where token == 10 || token >= 20 {
        for channel in 0..<d { inputs.value[(head * 200 + token) * d + channel] *= 6 }
      }
    }
    let sequence = CachedInputs(inputs)
    let expected = try whole(sequence, .int8)
    let cache = try sequence.cache(.int8)
    try sequence.append(0..<20, to: cache)
    // Token 10 stands out among these.
    try CachedInputs(other).append(20..<100, to: cache)
    try cache.truncate(to: 20)
    try sequence.append(20..<200, to: cache)
    let isSame = try sequence.attend(0..<200, cache) == expected
    #expect(isSame)
  }

  /// A fork that was cut inside a tile and goes on does not touch what it shares: 4-bit groups that are
  /// rounded again are others.
  @Test(arguments: [Precision.int4, .int4KeyValue])
  func aForkThatWasCutLeavesFourBitTokensAsTheyWere(_ precision: Precision) throws {
    let sequence = try CachedInputs(length: 330, headDimension: 16)
    let cache = try sequence.cache(precision, capacity: 1100)
    try sequence.append(0..<320, to: cache)
    let before = try sequence.attend(0..<320, cache)
    let fork = cache.fork()
    try fork.truncate(to: 300)
    let copy = try KVCache(in: cache.pool, restoring: fork.snapshot())
    try sequence.append(0..<30, to: fork)
    let untouched = try sequence.attend(0..<320, cache) == before
    #expect(untouched)
    // Nor does a snapshot of it forget what is in four bits.
    try sequence.append(0..<30, to: copy)
    let same = try sequence.attend(0..<330, copy) == sequence.attend(0..<330, fork)
    #expect(same)
  }

  /// Pages of a pool come back in another order than they were taken, and are found again.
  @Test(arguments: precisions, [64, 192])
  func pagesAnywhereGiveTheSameBits(_ precision: Precision, _ pageLength: Int) throws {
    let sequence = try CachedInputs(length: 517)
    let expected = try whole(sequence, precision)
    let shape = sequence.shape
    let pool = try KVCachePool(
      keyValueHeadCount: shape.keyValueHeadCount,
      headDimension: shape.headDimension,
      capacity: 2400,
      pageLength: pageLength,
      precision: precision
    )
    var others: [KVCache] = []
    for length in [70, 300, 5, 410] {
      let other = KVCache(in: pool)
      try sequence.append(0..<length, to: other)
      others.append(other)
    }
    others.remove(at: 1)
    others.removeFirst()
    let cache = KVCache(in: pool)
    try sequence.append(0..<517, to: cache)
    let scattered = try sequence.attend(0..<517, cache) == expected
    #expect(scattered)
    // Prefill of one and decoding of the others in one call: each as it is alone.
    let alone = try others.map { try sequence.attend($0.count - 1..<$0.count, $0) }
    let together = try CachedInputs.attend(
      [(sequence, 0..<517, cache)] + others.map { (sequence, $0.count - 1..<$0.count, $0) }
    )
    let joined = TestResult.joined([expected] + alone, heads: shape.queryHeadCount)
    #expect(together == joined)
  }

  @Test func withoutPagesNothingChanges() throws {
    let sequence = try CachedInputs(length: 130)
    let cache = try sequence.cache(.int8, capacity: 128)
    try sequence.append(0..<100, to: cache)
    let before = try sequence.attend(0..<100, cache)
    let error = #expect(throws: AttentionError.self) { try sequence.append(100..<130, to: cache) }
    #expect(error?.code == .outOfPages)
    #expect(cache.count == 100)
    let unchanged = try sequence.attend(0..<100, cache) == before
    #expect(unchanged)
    try sequence.append(100..<128, to: cache)
    #expect(cache.count == 128)
  }

  @Test func badTokensLeaveTheCacheAsItWas() throws {
    var inputs = TestInputs(try CachedInputs(length: 90).shape, .normal, seed: 4)
    inputs.key[80 * 64 + 3] = .nan
    let sequence = CachedInputs(inputs)
    let cache = try sequence.cache(.int8)
    try sequence.append(0..<70, to: cache)
    let error = #expect(throws: AttentionError.self) { try sequence.append(70..<90, to: cache) }
    #expect(error?.code == .nonFiniteInput)
    #expect(cache.count == 70)
  }

  /// int8 at most 53 % of bfloat16, int4 42 %, int4KeyValue 32 %.
  @Test func bytesPerTokenStayBelowTheirShares() throws {
    func bytes(_ precision: Precision) throws -> Double {
      try KVCachePool(
        keyValueHeadCount: 1,
        headDimension: 128,
        capacity: 64,
        precision: precision
      ).bytesPerToken
    }
    let float = try bytes(.bfloat16)
    for (precision, share) in [(Precision.int8, 0.53), (.int4, 0.42), (.int4KeyValue, 0.32)] {
      #expect(try bytes(precision) <= share * float, "\(precision)")
    }
  }
}
