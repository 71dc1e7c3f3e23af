import AttentionTestSupport
import IntFlashAttention
import Testing

/// Random operations on sequences of one pool, against a plain model of each: its tokens in an array, its
/// pages as objects, and the reference's cache.
@Suite struct CacheOperationTests {
  #if DEBUG
  static let steps = 700
  #else
  static let steps = 4000
  #endif

  @Test(arguments: KVCacheTests.precisions, [1, 2] as [UInt64])
  func randomOperationsFollowAModel(_ precision: Precision, _ seed: UInt64) throws {
    var model = try CacheModel(precision, seed: seed)
    for step in 0..<Self.steps {
      var operation = CacheModel.Operation.allCases.randomElement(using: &model.random) ?? .create
      if model.sequences.isEmpty { operation = .create }
      model.counts[operation, default: 0] += 1
      try model.perform(operation)
      try model.checkPages("step \(step), \(operation)")
    }
    let report = AccuracyReport(model.outputs, against: model.expectedOutputs)
    #expect(report.relativeL1 <= precision.gate.rounding)
    // Every operation had its turns.
    #expect(
      CacheModel.Operation.allCases.allSatisfy { model.counts[$0, default: 0] > Self.steps / 50 }
    )
    model.sequences.removeAll()
    #expect(model.pool.freePageCount == CacheModel.pageCount)
    #expect(model.referencePool.freePageCount == CacheModel.pageCount)
  }
}
