import AttentionTestSupport
import IntFlashAttention
import Testing

/// The bits of a row depend on its own operands only.
@Suite struct InvarianceTests {
  static let precisions = Precision.allCases.filter { $0 != .int4QueryKey }

  private func shape(batch: Int = 2, heads: Int = 4, length: Int = 150) throws -> AttentionShape {
    try AttentionShape(
      batchCount: batch,
      queryHeadCount: heads,
      keyValueHeadCount: heads / 2,
      queryLength: length,
      keyValueLength: 210,
      headDimension: 16
    )
  }

  @Test(arguments: precisions)
  func threadsDoNotChangeABit(_ precision: Precision) throws {
    // Enough work for several threads.
    let inputs = TestInputs(try shape(heads: 8), .outlierChannel)
    let options = AttentionOptions(mask: .causal)
    let one = try inputs.attend(precision.recipe, options, on: CPUBackend(threadCount: 1))
    for threads in [2, 3, 8] {
      let backend = CPUBackend(threadCount: threads)
      let many = try inputs.attend(precision.recipe, options, on: backend)
      #expect(many.output == one.output)
      #expect(many.logSumExp == one.logSumExp)
    }
  }

  /// One head, which threads share piece by piece in every stage.
  @Test(arguments: precisions)
  func piecesDoNotChangeABit(_ precision: Precision) throws {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 601,
      keyValueLength: 701,
      headDimension: 64
    )
    let inputs = TestInputs(shape, .outlierChannel)
    let options = AttentionOptions(mask: .causal)
    let one = try inputs.attend(precision.recipe, options, on: CPUBackend(threadCount: 1))
    let two = try inputs.attend(precision.recipe, options, on: CPUBackend(threadCount: 2))
    #expect(two.output == one.output)
    #expect(two.logSumExp == one.logSumExp)
  }

  @Test(arguments: precisions)
  func batchCompositionDoesNotChangeABit(_ precision: Precision) throws {
    let inputs = TestInputs(try shape(), .sink)
    let options = AttentionOptions(mask: .causal)
    let together = try inputs.attend(precision.recipe, options, on: CPUBackend())
    let single = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 150,
      keyValueLength: 210,
      headDimension: 16
    )
    for head in 0..<8 {
      var alone = TestInputs(single)
      alone.query = Array(inputs.query[head * 150 * 16..<(head + 1) * 150 * 16])
      let shared = head / 2
      alone.key = Array(inputs.key[shared * 210 * 16..<(shared + 1) * 210 * 16])
      alone.value = Array(inputs.value[shared * 210 * 16..<(shared + 1) * 210 * 16])
      let result = try alone.attend(precision.recipe, options, on: CPUBackend())
      #expect(result.output[...] == together.output[head * 150 * 16..<(head + 1) * 150 * 16])
      #expect(result.logSumExp[...] == together.logSumExp[head * 150..<(head + 1) * 150])
    }
  }

  @Test(arguments: precisions)
  func aPlanCanRunManyTimesAndFromManyThreads(_ precision: Precision) async throws {
    let inputs = TestInputs(try shape(batch: 1, heads: 2, length: 70))
    let plan = try AttentionPlan(inputs.shape, precision: precision)
    let first = try inputs.run(plan)
    try await withThrowingTaskGroup(of: TestResult.self) { group in
      for _ in 0..<6 { group.addTask { try inputs.run(plan) } }
      for try await result in group { #expect(result.output == first.output) }
    }
  }

  @Test(arguments: InstructionSet.supported)
  func instructionSetsGiveThePortableBits(_ instructionSet: InstructionSet) throws {
    for precision in [Precision.int8, .int4, .int4KeyValue] {
      for kind in [InputKind.normal, .hugeValue] {
        let inputs = TestInputs(try shape(), kind)
        for options in [
          AttentionOptions(), AttentionOptions(mask: .sliding(left: 70, right: 3)),
          AttentionOptions(softcap: 3, mask: .causal),
        ] {
          let portable = try inputs.attend(
            precision.recipe,
            options,
            on: CPUBackend(instructionSet: .portable)
          )
          let result = try inputs.attend(
            precision.recipe,
            options,
            on: CPUBackend(instructionSet: instructionSet)
          )
          #expect(result.output == portable.output, "\(precision), \(kind), \(options)")
          #expect(result.logSumExp == portable.logSumExp, "\(precision), \(kind), \(options)")
        }
      }
    }
  }

  /// Dimensions around whole registers, tokens around whole sub-tiles, rows around whole groups.
  @Test(arguments: InstructionSet.supported, [1, 5, 63, 64, 65, 96, 128, 256])
  func everyDimensionGivesThePortableBits(_ set: InstructionSet, _ dimension: Int) throws {
    for (queries, keys) in [(1, 1), (7, 65), (50, 193), (131, 311)] {
      let shape = try AttentionShape(
        queryHeadCount: 1,
        keyValueHeadCount: 1,
        queryLength: queries,
        keyValueLength: keys,
        headDimension: dimension,
        valueDimension: 257 - dimension
      )
      for kind in [InputKind.outlierChannel, .hugeValue] {
        let inputs = TestInputs(shape, kind)
        for options in [
          AttentionOptions(mask: .causal),
          AttentionOptions(softcap: 3, mask: .sliding(left: 70, right: 3)),
        ] {
          let recipe = Precision.int8.recipe
          let portable = CPUBackend(instructionSet: .portable)
          let expected = try inputs.attend(recipe, options, on: portable)
          let backend = CPUBackend(instructionSet: set)
          let result = try inputs.attend(recipe, options, on: backend)
          #expect(result.output == expected.output, "\(queries), \(keys), \(kind), \(options)")
          #expect(result.logSumExp == expected.logSumExp, "\(queries), \(keys), \(kind)")
        }
      }
    }
  }

  @Test func stridesAndLayoutsDoNotChangeABit() throws {
    let inputs = TestInputs(try shape(length: 40))
    let s = inputs.shape
    let dense = try inputs.attend(Precision.int8.recipe, on: CPUBackend())

    func tokensFirst(_ values: [Float], _ shape: [Int]) -> [Float] {
      var result = [Float](repeating: .nan, count: values.count)
      for b in 0..<shape[0] {
        for h in 0..<shape[1] {
          for n in 0..<shape[2] {
            for c in 0..<shape[3] {
              result[((b * shape[2] + n) * shape[1] + h) * shape[3] + c] =
                values[((b * shape[1] + h) * shape[2] + n) * shape[3] + c]
            }
          }
        }
      }
      return result
    }
    func stored(_ shape: [Int]) -> [Int] { [shape[0], shape[2], shape[1], shape[3]] }
    let (q, k, v) = (
      tokensFirst(inputs.query, s.queryShape), tokensFirst(inputs.key, s.keyShape),
      tokensFirst(inputs.value, s.valueShape)
    )
    var output = [Float](repeating: .nan, count: dense.output.count)
    try AttentionPlan(s).run(
      query: TensorView(q.span, shape: stored(s.queryShape)).operand(.batchTokensHeads),
      key: TensorView(k.span, shape: stored(s.keyShape)).operand(.batchTokensHeads),
      value: TensorView(v.span, shape: stored(s.valueShape)).operand(.batchTokensHeads),
      into: MutableTensorView(
        output.mutableSpan,
        shape: s.outputShape,
        strides: [s.queryLength * s.queryHeadCount * 16, 16, s.queryHeadCount * 16, 1]
      )
    )
    #expect(output == tokensFirst(dense.output, s.outputShape))
  }
}
