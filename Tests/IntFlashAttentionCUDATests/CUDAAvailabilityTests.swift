import IntFlashAttention
import IntFlashAttentionCUDA
import Testing

/// What can be said without a GPU.
@Suite struct CUDAAvailabilityTests {
  private func shape(_ length: Int = 8) throws -> AttentionShape {
    try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: length,
      keyValueLength: length,
      headDimension: 8
    )
  }

  @Test(.enabled(if: !TestDevice.exists, "this machine has a GPU"))
  func withoutAGPUThePlanSaysWhatIsMissing() throws {
    let error = #expect(throws: AttentionError.self) {
      try AttentionPlan(shape(), on: CUDABackend())
    }
    #expect(error?.code == .unavailable)
    #expect(error?.message.hasPrefix("no CUDA driver: ") == true)
  }

  @Test(arguments: [Precision.float32, .int4, .float8, .int8QueryKey])
  func otherRecipesAreUnsupported(_ precision: Precision) throws {
    let error = #expect(throws: AttentionError.self) {
      try AttentionPlan(shape(), precision: precision, on: CUDABackend())
    }
    #expect(error?.code == .unsupported)
    #expect(error?.message.contains("it computes int8, int8Paper") == true)
  }

  @Test func aSoftCapIsUnsupported() throws {
    let error = #expect(throws: AttentionError.self) {
      try AttentionPlan(shape(), options: AttentionOptions(softcap: 30), on: CUDABackend())
    }
    #expect(error?.code == .unsupported)
    #expect(error?.message.contains("softcap is 30.0") == true)
  }

  @Test func lengthsBeyondTheKernelsAreUnsupported() throws {
    let error = #expect(throws: AttentionError.self) {
      try AttentionPlan(shape(CUDABackend.largestLength + 1), on: CUDABackend())
    }
    #expect(error?.code == .unsupported)
    #expect(error?.message.contains("queryLength is 268435457") == true)
  }

  /// Batches and heads whose sizes in bytes would overflow, or whose number would.
  @Test(arguments: [(1 << 20, 1 << 21), (1 << 31, 1)])
  func moreTokensThanAGPUCanHaveAreUnsupported(batches: Int, keys: Int) throws {
    let shape = try AttentionShape(
      batchCount: batches,
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 1,
      keyValueLength: keys,
      headDimension: 64
    )
    let error = #expect(throws: AttentionError.self) {
      try AttentionPlan(shape, on: CUDABackend())
    }
    #expect(error?.code == .unsupported)
    #expect(error?.message.contains("more than a GPU can have in its memory") == true)
  }

  @Test(.enabled(if: TestDevice.exists))
  func devicesThatDoNotExistAreUnavailable() throws {
    let error = #expect(throws: AttentionError.self) {
      try AttentionPlan(shape(), on: CUDABackend(device: 99))
    }
    #expect(error?.code == .unavailable)
    #expect(error?.message.contains("no CUDA device 99") == true)
  }
}
