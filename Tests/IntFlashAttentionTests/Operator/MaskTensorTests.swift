import AttentionTestSupport
import IntFlashAttention
import Testing

/// Masks as tensors, ALiBi, sinks, prefixes and blocks: the reference against a textbook, backends
/// against the reference.
@Suite struct MaskTensorTests {
  /// One combination of what can be combined.
  struct Case: Sendable, CustomTestStringConvertible {
    let mask: Masks
    let precision: Precision
    let heads: (query: Int, keyValue: Int)
    let lengths: (query: Int, key: Int)
    let extra: Extras

    var testDescription: String {
      "\(mask), \(precision), heads \(heads.query)/\(heads.keyValue), lengths "
        + "\(lengths.query)/\(lengths.key), \(extra)"
    }

    var shape: AttentionShape {
      get throws {
        try AttentionShape(
          batchCount: lengths.query > 100 ? 1 : 2,
          queryHeadCount: heads.query,
          keyValueHeadCount: heads.keyValue,
          queryLength: lengths.query,
          keyValueLength: lengths.key,
          headDimension: 24,
          valueDimension: 20
        )
      }
    }
  }

  /// Which keys are seen.
  enum Masks: CaseIterable, Sendable {
    case full, causal, window, prefix, blocks, causalBlocks, raggedBlocks

    func options(_ shape: AttentionShape) throws -> AttentionOptions {
      switch self {
      case .full: AttentionOptions()
      case .causal: AttentionOptions(mask: .causal)
      case .window: AttentionOptions(mask: .sliding(left: 40, right: 3))
      case .prefix: AttentionOptions(mask: .prefixCausal(prefix: 45))
      case .blocks: AttentionOptions(blocks: try randomBlocks(shape, 64, 64))
      case .causalBlocks: AttentionOptions(mask: .causal, blocks: try randomBlocks(shape, 16, 128))
      case .raggedBlocks: AttentionOptions(blocks: try randomBlocks(shape, 7, 13))
      }
    }

    /// Every third query block sees nothing.
    private func randomBlocks(
      _ shape: AttentionShape,
      _ queries: Int,
      _ keys: Int
    ) throws -> VisibleBlocks {
      var random = TestRandom(seed: 5)
      let rows = (shape.queryLength + queries - 1) / queries
      let columns = (shape.keyValueLength + keys - 1) / keys
      return try VisibleBlocks(
        queryBlockLength: queries,
        keyBlockLength: keys,
        visible: (0..<rows).map { row in
          (0..<columns).filter { _ in row % 3 != 2 && random.uniform() < 0.6 }
        }
      )
    }
  }

  /// What comes beside.
  enum Extras: CaseIterable, Sendable {
    case additive, boolean, float16, bfloat16, perKey, perRow, hiddenRows, hiddenTiles, oneForAll
    case alibi, sink, everything, everythingCapped

    func additions(_ shape: AttentionShape) -> TestAdditions {
      var additions = TestAdditions()
      let (b, h) = (shape.batchCount, shape.queryHeadCount)
      let (q, k) = (shape.queryLength, shape.keyValueLength)
      switch self {
      case .additive: additions.mask = draw([b, h, q, k])
      case .boolean:
        additions.maskType = .int8
        additions.mask = (draw([h, q, k]).elements.map { $0 > 0 ? 1 : 0 }, [h, q, k])
      case .float16, .bfloat16:
        additions.maskType = self == .float16 ? .float16 : .bfloat16
        additions.mask = draw([b, 1, q, k])
      case .perKey: additions.mask = draw([b, 1, 1, k])
      case .perRow: additions.mask = draw([q, 1])
      case .oneForAll: additions.mask = draw([])
      case .hiddenRows:
        additions.mask = draw([q, k])
        for index in 0..<q * k where index / k % 3 == 1 {
          // The first is what programs write that have no infinity.
          additions.mask?.elements[index] =
            index / k % 2 == 0 ? -.greatestFiniteMagnitude : -.infinity
        }
      case .hiddenTiles:
        additions.mask = draw([h, q, k])
        for index in 0..<h * q * k where (64..<192).contains(index % k) {
          additions.mask?.elements[index] = -.infinity
        }
      case .alibi: additions.alibiSlopes = Alibi.slopes(headCount: h)
      case .sink: additions.sinks = [1.5, -.infinity, 30, -200].prefix(h).map(\.self)
      case .everything, .everythingCapped:
        additions.mask = draw([1, h, q, k])
        additions.alibiSlopes = Alibi.slopes(headCount: h)
        additions.sinks = [0.25, 3, -1, 2].prefix(h).map(\.self)
      }
      return additions
    }

    /// Normal numbers that float16 and bfloat16 hold; a third of them −∞.
    private func draw(_ shape: [Int]) -> (elements: [Float], shape: [Int]) {
      var random = TestRandom(seed: 23)
      let elements = (0..<shape.reduce(1, *)).map { _ -> Float in
        let element = BFloat16(random.normal()).float
        return random.uniform() < 0.33 && !shape.isEmpty ? -.infinity : element
      }
      return (elements, shape)
    }
  }

  static let heads = [(1, 1), (4, 2), (3, 1)]
  static let lengths = [(1, 77), (31, 31), (67, 191), (70, 331), (130, 70), (300, 129)]

  /// Every pair of values of two parameters comes together in some case.
  static let pairwise = Pairwise.rows([
    Masks.allCases.count, CPUBackendTests.precisions.count, heads.count, lengths.count,
    Extras.allCases.count,
  ]).map { row in
    Case(
      mask: Masks.allCases[row[0]],
      precision: CPUBackendTests.precisions[row[1]],
      heads: heads[row[2]],
      lengths: lengths[row[3]],
      extra: Extras.allCases[row[4]]
    )
  }

  /// The CPU backend, every instruction set, against the reference of the same recipe.
  @Test(arguments: pairwise)
  func matchesReference(_ test: Case) throws {
    let shape = try test.shape
    let inputs = TestInputs(shape, .outlierChannel, seed: 17)
    var options = try test.mask.options(shape)
    if test.extra == .everythingCapped { options.softcap = 5 }
    let additions = test.extra.additions(shape)
    let recipe = test.precision.recipe
    let reference = try inputs.run(
      AttentionPlan(shape, recipe: recipe, options: options, on: ReferenceBackend()),
      additions
    )
    var integerBits: TestResult?
    for instructionSet in InstructionSet.supported {
      let backend = CPUBackend(instructionSet: instructionSet)
      let plan = try AttentionPlan(shape, recipe: recipe, options: options, on: backend)
      let result = try inputs.run(plan, additions)
      expectSame(result, reference, test.precision, inputs, "\(instructionSet)")
      guard recipe.exponential == .table64 else { continue }
      #expect(result.output == integerBits?.output ?? result.output, "\(instructionSet)")
      integerBits = result
    }
  }

  /// The reference of exact attention against a textbook, and the CPU's float32.
  @Test(arguments: Masks.allCases, Extras.allCases)
  func matchesNaiveAttention(_ mask: Masks, _ extra: Extras) throws {
    let shape = try AttentionShape(
      batchCount: 2,
      queryHeadCount: 4,
      keyValueHeadCount: 2,
      queryLength: 45,
      keyValueLength: 203,
      headDimension: 8,
      valueDimension: 5
    )
    let inputs = TestInputs(shape, .normal, seed: 3)
    var options = try mask.options(shape)
    if extra == .everythingCapped { options.softcap = 2 }
    let additions = extra.additions(shape)
    let expected = inputs.naive(options, additions)
    for backend in [ReferenceBackend(), CPUBackend()] as [any AttentionBackend] {
      let plan = try AttentionPlan(shape, precision: .float32, options: options, on: backend)
      let result = try inputs.run(plan, additions)
      expectSame(result, expected, .float32, inputs, "\(plan.summary.backend)")
    }
  }
}
