import AttentionTestSupport
import IntFlashAttention
import Testing

/// The CPU backend against the reference definition of the same recipe, every row and element.
@Suite struct CPUBackendTests {
  /// Sizes around the first tile (64), the second (192), the query block (64) and a 4-bit group (32).
  static let sizes: [CallSizes] = [
    CallSizes(heads: (1, 1), lengths: (1, 1), dimensions: (1, 1)),
    CallSizes(heads: (2, 1), lengths: (1, 77), dimensions: (8, 8)),
    CallSizes(heads: (1, 1), lengths: (31, 31), dimensions: (16, 3)),
    CallSizes(heads: (1, 1), lengths: (63, 63), dimensions: (32, 32)),
    CallSizes(heads: (1, 1), lengths: (64, 64), dimensions: (64, 64)),
    CallSizes(heads: (4, 2), lengths: (65, 65), dimensions: (16, 16)),
    CallSizes(heads: (3, 1), lengths: (67, 191), dimensions: (20, 24)),
    CallSizes(heads: (1, 1), lengths: (40, 193), dimensions: (96, 33)),
    CallSizes(heads: (2, 2), lengths: (130, 70), dimensions: (24, 16)),
    CallSizes(heads: (1, 1), lengths: (150, 331), dimensions: (13, 40)),
    CallSizes(heads: (1, 1), lengths: (5, 129), dimensions: (256, 256)),
  ]

  static let masks: [AttentionMask] = [
    .full, .causal, .sliding(left: 40, right: 0), .sliding(left: 3, right: 70),
    .sliding(left: nil, right: 5),
  ]

  static let precisions = Precision.allCases.filter { $0 != .int4QueryKey }

  @Test(arguments: sizes, precisions)
  func matchesReference(_ sizes: CallSizes, _ precision: Precision) throws {
    let inputs = TestInputs(try sizes.shape, .outlierChannel, seed: 7)
    for instructionSet in InstructionSet.supported {
      for mask in Self.masks {
        let options = AttentionOptions(mask: mask)
        let result = try inputs.attend(
          precision.recipe,
          options,
          on: CPUBackend(instructionSet: instructionSet)
        )
        let reference = try inputs.attend(precision.recipe, options, on: ReferenceBackend())
        expectSame(result, reference, precision, inputs, "\(instructionSet), \(mask)")
      }
    }
  }

  @Test(arguments: InputKind.allCases, precisions)
  func matchesReferenceOnEveryKindOfInput(_ kind: InputKind, _ precision: Precision) throws {
    let shape = try AttentionShape(
      batchCount: 2,
      queryHeadCount: 2,
      keyValueHeadCount: 1,
      queryLength: 71,
      keyValueLength: 203,
      headDimension: 32,
      valueDimension: 16
    )
    let inputs = TestInputs(shape, kind, seed: 11)
    for options in [
      AttentionOptions(mask: .causal),
      AttentionOptions(softmaxScale: -0.4, mask: .full),
      AttentionOptions(softmaxScale: 0, mask: .full),
      AttentionOptions(softcap: 3, mask: .causal),
    ] {
      let reference = try inputs.attend(precision.recipe, options, on: ReferenceBackend())
      for instructionSet in InstructionSet.supported {
        let backend = CPUBackend(instructionSet: instructionSet)
        let result = try inputs.attend(precision.recipe, options, on: backend)
        expectSame(result, reference, precision, inputs, "\(instructionSet), \(options)")
      }
    }
  }

  @Test(arguments: precisions)
  func inputTypesThatHoldTheSameNumbersGiveTheSameBits(_ precision: Precision) throws {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 66,
      keyValueLength: 100,
      headDimension: 24
    )
    var inputs = TestInputs(shape, .sink, seed: 3)
    // bfloat16 and float16 both hold these.
    inputs.query = inputs.query.map { BFloat16($0).float }.map(Half.rounded)
    inputs.key = inputs.key.map { BFloat16($0).float }.map(Half.rounded)
    inputs.value = inputs.value.map { BFloat16($0).float }.map(Half.rounded)
    let plan = try AttentionPlan(shape, precision: precision)
    let float = try inputs.run(plan)
    for type in [ElementType.float16, .bfloat16] {
      let result = try inputs.run(plan, inputType: type)
      #expect(result.output == float.output, "\(type)")
      #expect(result.logSumExp == float.logSumExp, "\(type)")
    }
  }

  /// Several spans of 4096 keys, merged in order.
  @Test(arguments: [Precision.int8, .int4, .bfloat16])
  func longSequencesMergeTheirSpans(_ precision: Precision) throws {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 3,
      keyValueLength: 8300,
      headDimension: 8
    )
    for kind in [InputKind.normal, .rising, .falling] {
      let inputs = TestInputs(shape, kind, seed: 5)
      for mask in [AttentionMask.full, .sliding(left: 2000, right: 0)] {
        let options = AttentionOptions(mask: mask)
        let reference = try inputs.attend(precision.recipe, options, on: ReferenceBackend())
        let result = try inputs.attend(precision.recipe, options, on: CPUBackend())
        expectSame(result, reference, precision, inputs, "\(kind), \(mask)")
      }
    }
  }

  @Test func refusesRecipesWithoutKernel() throws {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 1,
      keyValueLength: 1,
      headDimension: 8
    )
    var longTiles = Precision.int8.recipe
    longTiles.tileLength = 256
    var splitUnit = Precision.int8.recipe
    splitUnit.firstTileLength = 32
    var oddTiles = Precision.float16.recipe
    oddTiles.tileLength = 37
    for recipe in [
      longTiles, splitUnit, oddTiles, Precision.int4QueryKey.recipe, Precision.int8.specification,
    ] {
      let error = #expect(throws: AttentionError.self) {
        try AttentionPlan(shape, recipe: recipe, on: CPUBackend())
      }
      #expect(error?.code == .unsupported)
      _ = try AttentionPlan(shape, recipe: recipe, on: ReferenceBackend())
    }
  }

  @Test func refusesThreadCountsBelowOne() throws {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 1,
      keyValueLength: 1,
      headDimension: 8
    )
    let error = #expect(throws: AttentionError.self) {
      try AttentionPlan(shape, on: CPUBackend(threadCount: 0))
    }
    #expect(error?.code == .invalidArgument)
    #expect(error?.message.contains("threadCount is 0") == true)
  }
}
