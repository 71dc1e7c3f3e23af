import IntFlashAttention
import Testing

@Suite struct AttentionShapeTests {
  private func failure(
    batch: Int = 1,
    queryHeads: Int = 2,
    keyHeads: Int = 1,
    queries: Int = 3,
    keys: Int = 3,
    dimension: Int = 8,
    valueDimension: Int? = nil
  ) -> AttentionError? {
    do throws(AttentionError) {
      _ = try AttentionShape(
        batchCount: batch,
        queryHeadCount: queryHeads,
        keyValueHeadCount: keyHeads,
        queryLength: queries,
        keyValueLength: keys,
        headDimension: dimension,
        valueDimension: valueDimension
      )
    } catch { return error }
    return nil
  }

  @Test func acceptsEveryDimensionUpTo256() {
    for dimension in 1...256 {
      #expect(failure(dimension: dimension) == nil)
      #expect(failure(valueDimension: dimension) == nil)
    }
  }

  @Test func namesTheSizeOutsideItsRange() {
    let cases: [(AttentionError?, String)] = [
      (failure(batch: -1), "batchCount is -1"),
      (failure(queryHeads: 0), "queryHeadCount is 0"),
      (failure(keyHeads: 0), "keyValueHeadCount is 0"),
      (failure(queries: -5), "queryLength is -5"),
      (failure(keys: .min), "keyValueLength is \(Int.min)"),
      (failure(dimension: 0), "headDimension is 0"),
      (failure(dimension: 257), "headDimension is 257"),
      (failure(valueDimension: 300), "valueDimension is 300"),
      (failure(queries: 1 << 31), "queryLength is 2147483648"),
      (failure(keys: .max), "keyValueLength is \(Int.max)"),
    ]
    for (error, message) in cases {
      #expect(error?.code == .invalidArgument)
      #expect(error?.message.hasPrefix(message) == true)
    }
  }

  @Test func queryHeadsMustDivide() {
    let error = failure(queryHeads: 5, keyHeads: 2)
    #expect(error?.code == .shapeMismatch)
    #expect(error?.message.hasPrefix("5 query heads cannot share 2") == true)
  }

  @Test func productsThatOverflowAreRefused() {
    for error in [
      failure(batch: .max), failure(batch: 1 << 30, queries: 1 << 30),
      failure(queryHeads: 1 << 62, keyHeads: 1),
    ] {
      #expect(error?.code == .invalidArgument)
      #expect(error?.message.contains("overflows") == true)
    }
  }

  @Test func groups() throws {
    let shape = try AttentionShape(
      queryHeadCount: 12,
      keyValueHeadCount: 3,
      queryLength: 1,
      keyValueLength: 1,
      headDimension: 1
    )
    #expect(shape.groupSize == 4)
    #expect(shape.isGroupedQuery)
  }
}
