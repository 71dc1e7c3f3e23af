import AttentionTestSupport
import IntFlashAttention
import Testing

/// What masks, slopes, sinks and blocks are refused for; and equal masks in other words.
@Suite struct MaskTensorErrorTests {
  private let shape: AttentionShape

  init() throws {
    shape = try AttentionShape(
      batchCount: 2,
      queryHeadCount: 4,
      keyValueHeadCount: 2,
      queryLength: 70,
      keyValueLength: 150,
      headDimension: 8
    )
  }

  private static let backends: [any AttentionBackend] = [ReferenceBackend(), CPUBackend()]

  private func error(
    on backend: any AttentionBackend = CPUBackend(),
    _ change: (inout TestAdditions) -> Void
  ) throws -> AttentionError? {
    var additions = TestAdditions()
    change(&additions)
    let plan = try AttentionPlan(shape, on: backend)
    return #expect(throws: AttentionError.self) { try TestInputs(shape).run(plan, additions) }
  }

  @Test(arguments: [Float.nan, .infinity, 0x1p80])
  func namesTheElementThatAMaskMayNotHave(_ bad: Float) throws {
    for backend in Self.backends {
      let error = try error(on: backend) {
        var elements = [Float](repeating: 0, count: 2 * 4 * 70 * 150)
        elements[((1 * 4 + 3) * 70 + 68) * 150 + 149] = bad
        $0.mask = (elements, [2, 4, 70, 150])
      }
      #expect(error?.code == (bad.isFinite ? .valueOutOfRange : .nonFiniteInput))
      let place = "mask at batch 1, head 3, query 68, key 149 is \(bad)"
      #expect(error?.message.hasPrefix(place) == true, "\(backend.name)")
    }
  }

  @Test(arguments: [[71, 150], [3, 70, 150], [1, 2, 4, 70, 150], [0]])
  func refusesMasksThatDoNotBroadcast(_ sizes: [Int]) throws {
    let error = try error {
      $0.mask = ([Float](repeating: 0, count: sizes.reduce(1, *)), sizes)
    }
    #expect(error?.code == .shapeMismatch)
    #expect(error?.message.hasPrefix("mask has shape \(sizes)") == true)
  }

  @Test func refusesMasksOfOtherTypes() throws {
    let error = try error {
      $0.mask = ([Float](repeating: 0, count: 150), [150])
      $0.maskType = .float8
    }
    #expect(error?.code == .unsupportedElementType)
  }

  @Test(arguments: ["alibiSlopes", "sinks"])
  func refusesNumbersPerHeadThatAreNone(_ name: String) throws {
    for (values, code) in [
      ([1, 1, 1], .shapeMismatch), ([1, .nan, 1, 1], .nonFiniteInput),
      ([1, 1, .infinity, 1], .nonFiniteInput), ([1, 1, 1, 0x1p40], .valueOutOfRange),
    ] as [([Float], AttentionError.Code)] {
      let error = try error {
        if name == "sinks" { $0.sinks = values } else { $0.alibiSlopes = values }
      }
      #expect(error?.code == code)
      #expect(error?.message.hasPrefix(name) == true)
    }
    guard name == "alibiSlopes" else { return }
    let infinite = try error { $0.alibiSlopes = [1, 1, 1, -.infinity] }
    #expect(infinite?.code == .nonFiniteInput)
  }

  @Test func refusesNegativePrefixes() throws {
    let error = #expect(throws: AttentionError.self) {
      try AttentionPlan(shape, options: AttentionOptions(mask: .prefixCausal(prefix: -1)))
    }
    #expect(error?.code == .invalidArgument)
    #expect(error?.message == "mask: prefix is -1; it must be at least 0")
  }

  @Test(
    arguments: [
      (0, 64, [[0]], .invalidArgument), (64, 0, [[0]], .invalidArgument),
      (64, 64, [[-1], []], .invalidArgument), (64, 64, [[1, 1], []], .invalidArgument),
      (64, 64, [[Int.max], []], .invalidArgument), (64, 64, [[0]], .shapeMismatch),
      (64, 64, [[3], []], .shapeMismatch),
    ] as [(Int, Int, [[Int]], AttentionError.Code)]
  )
  func refusesBlocks(
    _ queries: Int,
    _ keys: Int,
    _ visible: [[Int]],
    _ code: AttentionError.Code
  ) throws {
    let error = #expect(throws: AttentionError.self) {
      let blocks = try VisibleBlocks(
        queryBlockLength: queries,
        keyBlockLength: keys,
        visible: visible
      )
      _ = try AttentionPlan(shape, options: AttentionOptions(blocks: blocks))
    }
    #expect(error?.code == code)
    #expect(error?.message.hasPrefix("blocks: ") == true)
  }

  @Test func operationsCountWhatBlocksLeave() throws {
    let blocks = try VisibleBlocks(queryBlockLength: 64, keyBlockLength: 64, visible: [[0], [2]])
    let plan = try AttentionPlan(shape, options: AttentionOptions(blocks: blocks))
    let pairs = Double(64 * 64 + 6 * 22)
    #expect(plan.descriptor.operationCount == 2 * 4 * pairs * 4 * 8)
  }

  /// The paper's examples: 8 heads, and 12, which is no power of two.
  @Test func slopesAreThoseOfThePaper() {
    #expect(
      Alibi.slopes(headCount: 8)
        == (1...8).map { Float(sign: .plus, exponent: -$0, significand: 1) }
    )
    let twelve = Alibi.slopes(headCount: 12)
    #expect(twelve.count == 12)
    #expect(Array(twelve.prefix(8)) == Alibi.slopes(headCount: 8))
    #expect(
      Array(twelve.suffix(4))
        == Alibi.slopes(headCount: 16).enumerated().compactMap {
          $0.offset % 2 == 0 && $0.offset < 8 ? $0.element : nil
        }
    )
    #expect(Alibi.slopes(headCount: 1) == [0x1p-8])
  }

  /// A mask in other words gives the same bits: tiles are cut where they are cut without it.
  ///
  /// A tensor does not say where rows end, so this holds without the finer P of their last tiles.
  @Test(arguments: [Precision.int8, .int4, .int4KeyValue])
  func equalMasksGiveEqualBits(_ precision: Precision) throws {
    var recipe = precision.recipe
    recipe.refinesLastTile = false
    let inputs = TestInputs(shape, .outlierChannel, seed: 2)
    var additions = TestAdditions()
    additions.maskType = .int8
    let blocks = try VisibleBlocks(
      queryBlockLength: 32,
      keyBlockLength: 64,
      visible: [[0, 2], [], [1]]
    )
    for (options, sees) in [
      (AttentionOptions(mask: .causal), { row, key in key <= row + 80 }),
      (
        AttentionOptions(mask: .prefixCausal(prefix: 100)),
        { row, key in key <= row + 80 || key < 100 }
      ),
      (
        AttentionOptions(mask: .sliding(left: 30, right: 2)),
        { row, key in
          key >= row + 50 && key <= row + 82
        }
      ),
      (
        AttentionOptions(blocks: blocks),
        { row, key in
          row < 32 ? key < 64 || key >= 128 : row >= 64 && (64..<128).contains(key)
        }
      ),
    ] as [(AttentionOptions, (Int, Int) -> Bool)] {
      additions.mask = ((0..<70 * 150).map { sees($0 / 150, $0 % 150) ? 1 : 0 }, [70, 150])
      for instructionSet in InstructionSet.supported {
        for threads in [1, 2] {
          let backend = CPUBackend(threadCount: threads, instructionSet: instructionSet)
          let structured = try inputs.attend(recipe, options, on: backend)
          let plan = try AttentionPlan(shape, recipe: recipe, on: backend)
          let masked = try inputs.run(plan, additions)
          #expect(masked.output == structured.output, "\(instructionSet), \(options)")
          #expect(masked.logSumExp == structured.logSumExp, "\(instructionSet), \(options)")
        }
      }
    }
  }
}
