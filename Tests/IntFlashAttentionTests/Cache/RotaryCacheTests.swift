import AttentionTestSupport
import IntFlashAttention
import Testing

/// Caches that turn keys and queries by their positions, against tensors that were turned before.
@Suite struct RotaryCacheTests {
  private let length = 201
  private let queryHeads = 4
  private let keyHeads = 2
  private let dimension = 64

  private func embedding(
    _ style: RotaryEmbedding.Style,
    _ channels: Int = 64
  ) throws -> RotaryEmbedding {
    try RotaryEmbedding(rotaryDimension: channels, positionCount: 2000, style: style)
  }

  private func inputs(_ type: ElementType, seed: UInt64 = 1) throws -> (
    query: [Float], key: [Float], value: [Float]
  ) {
    let inputs = try CachedInputs(length: length, seed: seed).inputs
    // What the type can hold, so that turning it before or on the way begins with the same numbers.
    func rounded(_ values: [Float]) throws -> [Float] {
      try Tensor(values, shape: [values.count], elementType: type).copyFloats()
    }
    return (try rounded(inputs.query), try rounded(inputs.key), try rounded(inputs.value))
  }

  private func tokens(_ values: [Float], _ heads: Int, _ range: Range<Int>, _ type: ElementType)
    throws -> Tensor
  {
    let part = (0..<heads).flatMap { head in
      let start = head * length * dimension
      return values[start + range.lowerBound * dimension..<start + range.upperBound * dimension]
    }
    return try Tensor(part, shape: [heads, range.count, dimension], elementType: type)
  }

  /// Appends and attends chunk by chunk; with `before`, rows are turned by the caller.
  private func run(
    _ precision: Precision,
    _ rotary: RotaryEmbedding,
    _ type: ElementType = .float32,
    ends: [Int],
    firstPosition: Int = 0,
    before: Bool = false,
    on backend: any AttentionBackend = CPUBackend()
  ) throws -> [Float] {
    let (query, key, value) = try inputs(type)
    let pool = try KVCachePool(
      keyValueHeadCount: keyHeads,
      headDimension: dimension,
      capacity: length,
      precision: precision,
      on: backend
    )
    let cache = KVCache(in: pool)
    cache.firstPosition = firstPosition
    let plan = try CachedAttention(
      queryHeadCount: queryHeads,
      rotary: before ? nil : rotary,
      pool: pool
    )
    var result: [Float] = []
    var begin = 0
    for end in ends {
      let range = begin..<end
      let key = try tokens(key, keyHeads, range, type)
      let value = try tokens(value, keyHeads, range, type)
      let query = try tokens(query, queryHeads, range, type)
      var output = try Tensor(.float32, shape: [queryHeads, range.count, dimension])
      if before {
        let first = firstPosition + begin
        let turnedKey = try rotary.apply(to: key.view, firstPosition: first)
        let turnedQuery = try rotary.apply(to: query.view, firstPosition: first)
        try cache.append(key: turnedKey.view, value: value.view)
        try plan.run(query: turnedQuery.view, cache: cache, into: output.mutableView)
      } else {
        try cache.append(key: key.view, value: value.view, rotary: rotary)
        try plan.run(query: query.view, cache: cache, into: output.mutableView)
      }
      result += output.copyFloats()
      begin = end
    }
    return result
  }

  @Test(arguments: InstructionSet.supported, KVCacheTests.precisions)
  func turningOnTheWayGivesTheBitsOfTurningBefore(
    _ set: InstructionSet,
    _ precision: Precision
  ) throws {
    let backend = CPUBackend(instructionSet: set)
    for (style, channels, type) in [
      (RotaryEmbedding.Style.halfSplit, 64, ElementType.float32), (.interleaved, 64, .bfloat16),
      (.halfSplit, 20, .float16), (.interleaved, 32, .float32),
    ] {
      let rotary = try embedding(style, channels)
      for ends in [[length], [40, 41, 100, 101, length]] {
        let actual = try run(precision, rotary, type, ends: ends, firstPosition: 9, on: backend)
        let expected = try run(
          precision,
          rotary,
          type,
          ends: ends,
          firstPosition: 9,
          before: true,
          on: backend
        )
        let isSame = actual == expected
        #expect(isSame, "\(style), \(channels) channels, \(type), chunks to \(ends)")
      }
    }
  }

  /// Logits depend on distances, so attention does too, up to what quantisation makes of them.
  @Test(arguments: KVCacheTests.precisions)
  func distancesDecide(_ precision: Precision) throws {
    let rotary = try embedding(.halfSplit)
    let near = try run(precision, rotary, ends: [length])
    let far = try run(precision, rotary, ends: [length], firstPosition: 1700)
    let difference = AccuracyReport(far, against: near).relativeL1
    #expect(difference <= 2 * precision.gate.normal(keyValueLength: length))
  }

  @Test func logSumExpIsThatOfTurnedRows() throws {
    let rotary = try embedding(.interleaved)
    let (query, key, value) = try inputs(.float32)
    func logSumExp(before: Bool) throws -> [Float] {
      let pool = try KVCachePool(
        keyValueHeadCount: keyHeads,
        headDimension: dimension,
        capacity: length
      )
      let cache = KVCache(in: pool)
      let plan = try CachedAttention(
        queryHeadCount: queryHeads,
        options: AttentionOptions(softcap: 20, mask: .causal),
        rotary: before ? nil : rotary,
        pool: pool
      )
      let key = try tokens(key, keyHeads, 0..<length, .float32)
      let value = try tokens(value, keyHeads, 0..<length, .float32)
      let query = try tokens(query, queryHeads, length - 1..<length, .float32)
      var output = try Tensor(.float32, shape: [queryHeads, 1, dimension])
      var sums = try Tensor(.float32, shape: [queryHeads, 1])
      let turned = try rotary.apply(to: query.view, firstPosition: length - 1)
      if before {
        let turnedKey = try rotary.apply(to: key.view)
        try cache.append(key: turnedKey.view, value: value.view)
      } else {
        try cache.append(key: key.view, value: value.view, rotary: rotary)
      }
      try plan.run(
        query: before ? turned.view : query.view,
        offsets: [0, 1],
        caches: [cache],
        into: output.mutableView,
        logSumExp: sums.mutableView
      )
      return output.copyFloats() + sums.copyFloats()
    }
    let (actual, expected) = (try logSumExp(before: false), try logSumExp(before: true))
    #expect(actual == expected)
  }

  @Test func forksKeepTheirFirstPosition() throws {
    let cache = try CachedInputs(length: 1).cache(.int8)
    cache.firstPosition = 40
    #expect(cache.fork().firstPosition == 40)
  }

  @Test func whatCannotBeTurnedLeavesTheCacheAsItWas() throws {
    let rotary = try embedding(.halfSplit)
    func code(
      _ rotary: RotaryEmbedding,
      _ row: [Float],
      firstPosition: Int = 0
    ) throws -> AttentionError? {
      let cache = try KVCache(keyValueHeadCount: 1, headDimension: 4, capacity: 8)
      cache.firstPosition = firstPosition
      let key = try Tensor(row, shape: [1, 1, 4])
      let value = try Tensor([1, 2, 3, 4], shape: [1, 1, 4])
      do throws(AttentionError) {
        try cache.append(key: key.view, value: value.view, rotary: rotary)
      } catch {
        #expect(cache.count == 0)
        return error
      }
      return nil
    }
    let small = try RotaryEmbedding(rotaryDimension: 4, positionCount: 3)
    let big: Float = 0x1.Cp59
    #expect(try code(rotary, [1, 2, 3, 4])?.code == .shapeMismatch)
    #expect(try code(small, [1, 2, 3, 4]) == nil)
    #expect(try code(small, [1, 2, 3, 4], firstPosition: 3)?.code == .invalidArgument)
    #expect(try code(small, [1, 2, 3, 4], firstPosition: -1)?.code == .invalidArgument)
    #expect(try code(small, [1, 2, 3, 4], firstPosition: .max)?.code == .invalidArgument)
    let infinite = try code(small, [1, 2, .infinity, 4])
    #expect(infinite?.code == .nonFiniteInput)
    #expect(infinite?.message.contains("channel 2") == true)
    // Below the limit as given, beyond it once turned.
    #expect(try code(small, [big, 0, big, 0]) == nil)
    #expect(try code(small, [-big, 0, big, 0], firstPosition: 1)?.code == .valueOutOfRange)
  }
}
