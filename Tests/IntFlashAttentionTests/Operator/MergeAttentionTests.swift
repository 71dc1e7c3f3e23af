import AttentionTestSupport
import Foundation
import IntFlashAttention
import Testing

@Suite struct MergeAttentionTests {
  /// Outputs and log-sum-exps of parts, merged in order.
  private func merge(
    _ parts: [TestResult],
    shape: [Int],
    type: ElementType = .float32,
    filling start: Float = 0
  ) throws -> TestResult {
    let rows = Array(shape.dropLast())
    var output = try Tensor(
      [Float](repeating: start, count: shape.reduce(1, *)),
      shape: shape,
      elementType: type
    )
    var sums = try Tensor([Float](repeating: -.infinity, count: rows.reduce(1, *)), shape: rows)
    for part in parts {
      let partOutput = try Tensor(part.output, shape: shape)
      let partSums = try Tensor(part.logSumExp, shape: rows)
      try mergeAttention(
        partOutput.view,
        logSumExp: partSums.view,
        into: output.mutableView,
        logSumExp: sums.mutableView
      )
    }
    return TestResult(output: output.copyFloats(), logSumExp: sums.copyFloats())
  }

  /// The merge of some parts in double precision, all at once.
  private func expected(_ parts: [TestResult], dimension: Int) -> TestResult {
    var result: ([Float], [Float]) = ([], [])
    for row in parts[0].logSumExp.indices {
      let sums = parts.map { Double($0.logSumExp[row]) }
      let top = sums.max() ?? 0
      let weights = sums.map { $0 == -.infinity ? 0 : exp($0 - top) }
      let total = weights.reduce(0, +)
      result.1.append(total > 0 ? Float(top + log(total)) : -.infinity)
      for channel in 0..<dimension {
        let sum = zip(weights, parts).reduce(0.0) {
          $0 + $1.0 * Double($1.1.output[row * dimension + channel])
        }
        result.0.append(total > 0 ? Float(sum / total) : 0)
      }
    }
    return TestResult(output: result.0, logSumExp: result.1)
  }

  private func randomPart(seed: UInt64, rows: Int, dimension: Int) -> TestResult {
    var random = TestRandom(seed: seed)
    return TestResult(
      output: (0..<rows * dimension).map { _ in random.normal() },
      logSumExp: (0..<rows).map { _ in random.uniform() < 0.2 ? -.infinity : 30 * random.normal() }
    )
  }

  @Test(arguments: [1, 7, 64, 256])
  func twoPartsAreExactToRounding(_ dimension: Int) throws {
    let parts = [1, 2].map { randomPart(seed: $0, rows: 2 * 3 * 11, dimension: dimension) }
    let result = try merge(parts, shape: [2, 3, 11, dimension])
    let exact = expected(parts, dimension: dimension)
    // Merging into nothing copies, so that one rounding is left.
    #expect(result.output == exact.output)
    #expect(result.logSumExp == exact.logSumExp)
  }

  @Test func manyPartsRoundOncePerPart() throws {
    let parts = (1...9).map { randomPart(seed: $0, rows: 2 * 3 * 11, dimension: 5) }
    let result = try merge(parts, shape: [2, 3, 11, 5])
    let exact = expected(parts, dimension: 5)
    for (a, b) in zip(result.output, exact.output) { #expect(abs(a - b) <= 9 * 4 * Float.ulpOfOne) }
    for (a, b) in zip(result.logSumExp, exact.logSumExp) where a != b {
      #expect(abs(a - b) <= 9 * b.ulp)
    }
  }

  @Test(arguments: [Float.nan, 7])
  func whatSawNoKeyCountsNothing(_ start: Float) throws {
    let nothing = TestResult(output: [.nan, .nan], logSumExp: [-.infinity])
    let something = TestResult(output: [1.5, -2], logSumExp: [-1e4])
    for parts in [[nothing, something], [something, nothing], [nothing, something, nothing]] {
      let result = try merge(parts, shape: [1, 1, 1, 2], filling: start)
      #expect(result.output == something.output)
      #expect(result.logSumExp == something.logSumExp)
    }
    let empty = try merge([nothing, nothing], shape: [1, 1, 1, 2])
    #expect(empty.output == [0, 0])
    #expect(empty.logSumExp == [-.infinity])
  }

  @Test(arguments: [ElementType.float16, .bfloat16])
  func roundsToTheTypeOfTheOutput(_ type: ElementType) throws {
    let parts = [3, 4].map { randomPart(seed: $0, rows: 6, dimension: 8) }
    let first = try Tensor(parts[0].output, shape: [48], elementType: type).copyFloats()
    let exact = expected(
      [TestResult(output: first, logSumExp: parts[0].logSumExp), parts[1]],
      dimension: 8
    )
    let rounded = try Tensor(exact.output, shape: [48], elementType: type).copyFloats()
    #expect(try merge(parts, shape: [1, 2, 3, 8], type: type).output == rounded)
  }

  /// A shared prefix and the rest, each by itself, against all keys at once.
  @Test(arguments: [Precision.int8, .bfloat16, .float32])
  func aPrefixAndTheRestAreTheWhole(_ precision: Precision) throws {
    let shape = try AttentionShape(
      queryHeadCount: 4,
      keyValueHeadCount: 2,
      queryLength: 37,
      keyValueLength: 300,
      headDimension: 16
    )
    let inputs = TestInputs(shape, .normal, seed: 9)
    let exact = try inputs.exact(AttentionOptions(mask: .causal))
    // Cut by masks, so that both parts see positions of the whole.
    let parts = try [[0, 1], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]].map { blocks in
      let blocks = blocks.filter { $0 * 64 < 300 }
      let visible = try VisibleBlocks(queryBlockLength: 37, keyBlockLength: 64, visible: [blocks])
      return try inputs.attend(
        precision.recipe,
        AttentionOptions(mask: .causal, blocks: visible),
        on: CPUBackend()
      )
    }
    let merged = try merge(parts, shape: shape.outputShape)
    let report = AccuracyReport(merged.output, against: exact.output)
    #expect(report.relativeL1 <= precision.gate.normal(keyValueLength: 300))
    for (a, b) in zip(merged.logSumExp, exact.logSumExp) {
      #expect(abs(a - b) <= precision.logSumExpBound)
    }
  }

  @Test(arguments: [Float.nan, .infinity])
  func refusesSumsThatAreNotFinite(_ bad: Float) throws {
    let error = #expect(throws: AttentionError.self) {
      try merge([TestResult(output: [0, 0], logSumExp: [0, bad])], shape: [1, 1, 2, 1])
    }
    #expect(error?.code == .nonFiniteInput)
    let place = "part's logSumExp at batch 0, head 0, query 1 is \(bad)"
    #expect(error?.message.hasPrefix(place) == true)
  }

  @Test func refusesShapesThatDoNotFit() throws {
    let part = try Tensor(.float32, shape: [1, 2, 3, 4])
    let sums = try Tensor(.float32, shape: [1, 2, 3])
    var output = try Tensor(.float32, shape: [1, 2, 3, 5])
    var whole = try Tensor(.float32, shape: [1, 2, 3])
    let error = #expect(throws: AttentionError.self) {
      try mergeAttention(
        part.view,
        logSumExp: sums.view,
        into: output.mutableView,
        logSumExp: whole.mutableView
      )
    }
    #expect(error?.code == .shapeMismatch)
    #expect(error?.message == "output has shape [1, 2, 3, 5], but part has [1, 2, 3, 4]")
  }
}
