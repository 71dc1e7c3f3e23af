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
}
