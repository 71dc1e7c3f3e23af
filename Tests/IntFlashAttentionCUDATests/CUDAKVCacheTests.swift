import AttentionTestSupport
import IntFlashAttention
import IntFlashAttentionCUDA
import Testing

/// A cache on the device, and tokens that are put into it in any way.
struct DeviceCache {
  let inputs: TestInputs
  let cache: CUDAKVCache
  let stream: CUDAStream

  init(_ inputs: TestInputs, capacity: Int? = nil) throws {
    let shape = inputs.shape
    let device = try #require(TestDevice.device)
    self.inputs = inputs
    cache = try CUDAKVCache(
      batchCount: shape.batchCount,
      keyValueHeadCount: shape.keyValueHeadCount,
      headDimension: shape.headDimension,
      valueDimension: shape.valueDimension,
      capacity: capacity ?? shape.keyValueLength,
      on: device
    )
    stream = try CUDAStream(on: device)
  }

  /// Tokens `range` of every head, on the device.
  private func part(
    _ values: [Float],
    _ shape: [Int],
    _ range: Range<Int>,
    _ type: ElementType = .float32
  ) throws -> DeviceTensor {
    var kept: [Float] = []
    for head in 0..<shape[0] * shape[1] {
      let start = head * shape[2] * shape[3]
      kept += values[start + range.lowerBound * shape[3]..<start + range.upperBound * shape[3]]
    }
    let partShape = [shape[0], shape[1], range.count, shape[3]]
    let host = try Tensor(kept, shape: partShape, elementType: type)
    let tensor = try DeviceTensor(type, shape: partShape, on: cache.device)
    try tensor.copy(from: host, on: stream)
    return tensor
  }

  func append(_ range: Range<Int>, _ type: ElementType = .float32) throws {
    let key = try part(inputs.key, inputs.shape.keyShape, range, type)
    let value = try part(inputs.value, inputs.shape.valueShape, range, type)
    try cache.append(key: key, value: value, on: stream)
    try stream.synchronize()
  }

  /// Attention of the last queries of the inputs.
  func attend(
    last count: Int,
    _ options: AttentionOptions = AttentionOptions(mask: .causal)
  ) throws -> TestResult {
    let shape = inputs.shape
    let range = shape.queryLength - count..<shape.queryLength
    let query = try part(inputs.query, shape.queryShape, range)
    let outputShape = [shape.batchCount, shape.queryHeadCount, count, shape.valueDimension]
    let output = try DeviceTensor(.float32, shape: outputShape, on: cache.device)
    let sums = try DeviceTensor(.float32, shape: Array(outputShape.prefix(3)), on: cache.device)
    try cache.attend(query: query, into: output, logSumExp: sums, options: options, on: stream)
    try cache.check(on: stream)
    var result = try Tensor(.float32, shape: outputShape)
    var resultSums = try Tensor(.float32, shape: Array(outputShape.prefix(3)))
    try output.copy(to: &result, on: stream)
    try sums.copy(to: &resultSums, on: stream)
    return TestResult(output: result.copyFloats(), logSumExp: resultSums.copyFloats())
  }

  /// Inputs whose mean of the keys and unit of the values are those of the first 64 tokens: every other
  /// 64 mirror them.
  static func mirrored(_ shape: AttentionShape, _ kind: InputKind, seed: UInt64) -> TestInputs {
    var inputs = TestInputs(shape, kind, seed: seed)
    let (d, dv) = (shape.headDimension, shape.valueDimension)
    for head in 0..<shape.batchCount * shape.keyValueHeadCount {
      let first = head * shape.keyValueLength
      for channel in 0..<d {
        let column = (0..<64).map { inputs.key[(first + $0) * d + channel] }
        let mean = column.reduce(0, +) / 64
        for token in 64..<shape.keyValueLength {
          let value = column[token % 64]
          inputs.key[(first + token) * d + channel] = token / 64 % 2 == 0 ? value : 2 * mean - value
        }
      }
      for channel in 0..<dv {
        for token in 64..<shape.keyValueLength {
          let value = inputs.value[(first + token % 64) * dv + channel]
          inputs.value[(first + token) * dv + channel] = token / 64 % 2 == 0 ? value : -value
        }
      }
    }
    return inputs
  }

  /// The cache's recipe as the GPU cuts it, in one call.
  func reference(
    last count: Int,
    _ options: AttentionOptions = AttentionOptions(mask: .causal)
  ) throws -> TestResult {
    var inputs = inputs
    let shape = inputs.shape
    var query: [Float] = []
    let row = shape.headDimension
    for head in 0..<shape.batchCount * shape.queryHeadCount {
      let end = (head + 1) * shape.queryLength * row
      query += inputs.query[end - count * row..<end]
    }
    let last = try AttentionShape(
      batchCount: shape.batchCount,
      queryHeadCount: shape.queryHeadCount,
      keyValueHeadCount: shape.keyValueHeadCount,
      queryLength: count,
      keyValueLength: shape.keyValueLength,
      headDimension: shape.headDimension,
      valueDimension: shape.valueDimension
    )
    let sizes = CUDATileSizes(
      cached: last,
      multiprocessorCount: cache.device.multiprocessorCount
    )
    let recipe = try #require(Precision.int8.streamingRecipe).cut(by: sizes)
    let (key, value) = (inputs.key, inputs.value)
    inputs = TestInputs(last)
    inputs.query = query
    inputs.key = key
    inputs.value = value
    return try inputs.attend(recipe, options, on: ReferenceBackend())
  }
}

/// Decoding on the device against the same recipe computed at once.
@Suite(.enabled(if: TestDevice.exists), .serialized)
struct CUDAKVCacheTests {
  private func shape(
    batch: Int = 1,
    heads: (Int, Int) = (4, 2),
    tokens: Int,
    dimension: Int = 64,
    value: Int? = nil
  ) throws -> AttentionShape {
    try AttentionShape(
      batchCount: batch,
      queryHeadCount: heads.0,
      keyValueHeadCount: heads.1,
      queryLength: tokens,
      keyValueLength: tokens,
      headDimension: dimension,
      valueDimension: value
    )
  }

  /// Tokens that all lie in the first tile: nothing is fixed yet.
  ///
  /// Without outliers: with one, the call that this is compared with has no whole weights.
  @Test(arguments: [1, 2, 63, 64], [InputKind.normal, .sink, .equalScores, .zeroRows])
  func fewTokens(_ tokens: Int, _ kind: InputKind) throws {
    let device = try DeviceCache(TestInputs(shape(batch: 2, tokens: tokens), kind, seed: 3))
    try device.append(0..<tokens)
    let result = try device.attend(last: tokens)
    let reference = try device.reference(last: tokens)
    expectSame(result, reference, .int8, device.inputs, "\(tokens) tokens, \(kind)")
  }

  @Test(arguments: [(64, 64), (96, 80), (128, 128), (200, 13), (256, 256)])
  func everyDimension(dimension: Int, value: Int) throws {
    let shape = try shape(heads: (6, 2), tokens: 256, dimension: dimension, value: value)
    let device = try DeviceCache(DeviceCache.mirrored(shape, .outlierChannel, seed: 9))
    try device.append(0..<256)
    for count in [1, 20, 70] {
      let result = try device.attend(last: count)
      let reference = try device.reference(last: count)
      expectSame(result, reference, .int8, device.inputs, "\(count) queries")
    }
    let window = AttentionOptions(softmaxScale: 0.3, mask: .sliding(left: 100, right: 0))
    let result = try device.attend(last: 5, window)
    expectSame(result, try device.reference(last: 5, window), .int8, device.inputs, "window")
  }

  /// One query against many keys, in parts that are merged.
  @Test(arguments: [InputKind.normal, .outlierChannel])
  func longCaches(_ kind: InputKind) throws {
    let shape = try shape(heads: (3, 1), tokens: 2176)
    let device = try DeviceCache(DeviceCache.mirrored(shape, kind, seed: 4))
    try device.append(0..<2176)
    let result = try device.attend(last: 1)
    expectSame(result, try device.reference(last: 1), .int8, device.inputs, "\(kind)")
  }

  /// However tokens come, they are stored the same.
  @Test(arguments: [InputKind.normal, .sink, .hugeValue])
  func chunksGiveTheSameBits(_ kind: InputKind) throws {
    let inputs = TestInputs(try shape(batch: 2, tokens: 150), kind, seed: 6)
    let whole = try DeviceCache(inputs)
    try whole.append(0..<150)
    let expected = try whole.attend(last: 7)
    for cuts in [[0, 64, 150], [0, 1, 2, 40, 90, 91, 128, 129, 150], Array(0...150)] {
      let chunked = try DeviceCache(inputs)
      for (begin, end) in zip(cuts, cuts.dropFirst()) { try chunked.append(begin..<end, .float16) }
      #expect(try chunked.attend(last: 7) == expected, "\(cuts.count) cuts")
    }
  }

  /// Against exact attention, on data whose statistics are not those of the first tokens; rows that see
  /// more than those, as the CPU's cache computes the others in float32.
  @Test(arguments: [InputKind.normal, .outlierChannel, .sink, .rising, .hugeValue])
  func isAsNearAsTheCacheOfTheCPU(_ kind: InputKind) throws {
    let (first, end) = (64, 300)
    let sequence = try CachedInputs(length: end, kind, seed: 8)
    let device = try DeviceCache(sequence.inputs)
    try device.append(0..<end)
    let result = try device.attend(last: end - first)
    let whole = try sequence.inputs.exact(AttentionOptions(mask: .causal))
    let exact = sequence.rows(first..<end, of: whole)
    let host = try sequence.cache(.int8)
    try sequence.append(0..<end, to: host)
    let onHost = try sequence.attend(first..<end, host)
    let report = AccuracyReport(result.output, against: exact.output)
    let hostReport = AccuracyReport(onHost.output, against: exact.output)
    // P of a row's last tile has eight bits on the device and sixteen on the host.
    let bound = max(1.1 * hostReport.relativeL1, Precision.int8.gate.normal)
    #expect(report.relativeL1 <= bound, "\(kind)")
    let apart = zip(result.logSumExp, exact.logSumExp).map { ($0 - $1).magnitude }.max() ?? 0
    let hostApart = zip(onHost.logSumExp, exact.logSumExp).map { ($0 - $1).magnitude }.max() ?? 0
    #expect(apart <= hostApart + Precision.int8.logSumExpRounding, "\(kind)")
  }

  @Test func whatDoesNotFitIsRefused() throws {
    let inputs = TestInputs(try shape(tokens: 10))
    let device = try DeviceCache(inputs, capacity: 12)
    try device.append(0..<10)
    #expect(device.cache.count == 10)
    let full = #expect(throws: AttentionError.self) { try device.append(0..<3) }
    #expect(full?.code == .outOfPages)
    #expect(full?.message == "3 tokens do not fit: the cache has 10 and room for 12")
    let capped = AttentionOptions(softcap: 30, mask: .causal)
    let softcap = #expect(throws: AttentionError.self) { try device.attend(last: 1, capped) }
    #expect(softcap?.code == .unsupported)
    #expect(device.cache.count == 10)
    device.cache.removeAll()
    try device.append(0..<10)
    #expect(try device.attend(last: 1).output.allSatisfy { $0.isFinite })
  }

  @Test func elementsThatAreNotFiniteAreFound() throws {
    var inputs = TestInputs(try shape(tokens: 10))
    inputs.value[17] = .nan
    let device = try DeviceCache(inputs)
    try device.append(0..<10)
    let error = #expect(throws: AttentionError.self) { try device.attend(last: 1) }
    #expect(error?.code == .nonFiniteInput)
    #expect(error?.message == "value has an element that is not finite or too large")
  }

  /// As decoding does it: a token and a query at a time, from nothing.
  @Test func tokenByToken() throws {
    let shape = try shape(heads: (2, 1), tokens: 768)
    let device = try DeviceCache(DeviceCache.mirrored(shape, .normal, seed: 12))
    try device.append(0..<600)
    for token in 600..<603 {
      try device.append(token..<token + 1)
      // The query is that of the last token of the inputs, whatever the cache has.
      #expect(try device.attend(last: 1).output.allSatisfy { $0.isFinite })
    }
    for token in 603..<768 { try device.append(token..<token + 1) }
    let result = try device.attend(last: 1)
    expectSame(result, try device.reference(last: 1), .int8, device.inputs, "token by token")
  }

  @Test func rowsWithoutKeysGiveZeros() throws {
    let device = try DeviceCache(TestInputs(try shape(tokens: 10)), capacity: 64)
    let result = try device.attend(last: 3)
    #expect(result.output.allSatisfy { $0 == 0 })
    #expect(result.logSumExp.allSatisfy { $0 == -.infinity })
  }
}
