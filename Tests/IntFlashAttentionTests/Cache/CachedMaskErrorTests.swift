import AttentionTestSupport
import IntFlashAttention
import Testing

/// What masks, slopes, sinks and blocks of a call on caches are refused for, and what they may be.
@Suite struct CachedMaskErrorTests {
  private static let backends: [any AttentionBackend] = [ReferenceBackend(), CPUBackend()]

  /// Five queries of a sequence of 80 tokens, and two of one of 3, by four query heads.
  private func run(
    on backend: any AttentionBackend = CPUBackend(),
    _ options: AttentionOptions = AttentionOptions(mask: .causal),
    _ additions: TestAdditions = TestAdditions()
  ) throws -> TestResult {
    let tokens = try CachedInputs(length: 80, headDimension: 8)
    let long = try tokens.cache(.int8, capacity: 192, on: backend)
    let short = KVCache(in: long.pool)
    try tokens.append(0..<80, to: long)
    try tokens.append(0..<3, to: short)
    return try CachedInputs.attend(
      [(tokens, 75..<80, long), (tokens, 1..<3, short)],
      options,
      additions
    )
  }

  private func error(
    on backend: any AttentionBackend = CPUBackend(),
    _ options: AttentionOptions = AttentionOptions(mask: .causal),
    _ change: (inout TestAdditions) -> Void = { _ in }
  ) throws -> AttentionError? {
    var additions = TestAdditions()
    change(&additions)
    return #expect(throws: AttentionError.self) { try run(on: backend, options, additions) }
  }

  @Test(arguments: [Float.nan, .infinity, 0x1p80])
  func namesTheElementThatAMaskMayNotHave(_ bad: Float) throws {
    for backend in Self.backends {
      let error = try error(on: backend) {
        var elements = [Float](repeating: 0, count: 4 * 7 * 80)
        elements[(3 * 7 + 4) * 80 + 79] = bad
        $0.mask = (elements, [4, 7, 80])
      }
      #expect(error?.code == (bad.isFinite ? .valueOutOfRange : .nonFiniteInput))
      let place = "mask at batch 0, head 3, query 4, key 79 is \(bad)"
      #expect(error?.message.hasPrefix(place) == true, "\(backend.name): \(error?.message ?? "")")
    }
  }

  /// Columns beyond the tokens of a sequence are padding.
  @Test func whatLiesBeyondASequenceIsNotRead() throws {
    var additions = TestAdditions()
    additions.mask = ([Float](repeating: 0, count: 7 * 90), [7, 90])
    for backend in Self.backends {
      let expected = try run(on: backend, AttentionOptions(mask: .causal), additions)
      var padded = additions
      for row in 0..<7 {
        for key in (row < 5 ? 80 : 3)..<90 { padded.mask?.elements[row * 90 + key] = .nan }
      }
      let result = try run(on: backend, AttentionOptions(mask: .causal), padded)
      #expect(result == expected, "\(backend.name)")
    }
  }

  @Test(arguments: [[7, 79], [6, 80], [3, 7, 80], [2, 4, 7, 80], [0]])
  func refusesMasksThatDoNotBroadcast(_ sizes: [Int]) throws {
    let error = try error {
      $0.mask = ([Float](repeating: 0, count: sizes.reduce(1, *)), sizes)
    }
    #expect(error?.code == .shapeMismatch)
    #expect(error?.message.hasPrefix("mask has shape \(sizes)") == true)
  }

  @Test(arguments: ["alibiSlopes", "sinks"])
  func refusesNumbersPerHeadThatAreNone(_ name: String) throws {
    for (values, code) in [
      ([Float](repeating: 1, count: 12), .shapeMismatch), ([1, .nan, 1, 1], .nonFiniteInput),
      ([1, 1, 1, 0x1p40], .valueOutOfRange),
    ] as [([Float], AttentionError.Code)] {
      let error = try error {
        if name == "sinks" { $0.sinks = values } else { $0.alibiSlopes = values }
      }
      #expect(error?.code == code)
      #expect(error?.message.hasPrefix(name) == true)
    }
  }

  /// [sequences, Hq]: each sequence as it is with its own numbers.
  @Test func sequencesHaveSlopesAndSinksOfTheirOwn() throws {
    let (first, second): ([Float], [Float]) = ([0.5, 0.1, 0, 1], [0.2, 2, -0.5, 0.3])
    for backend in Self.backends {
      func result(_ numbers: [Float]) throws -> TestResult {
        var additions = TestAdditions()
        additions.alibiSlopes = numbers
        additions.sinks = numbers
        return try run(on: backend, AttentionOptions(mask: .causal), additions)
      }
      let (a, b) = (try result(first), try result(second))
      let both = try result(first + second)
      for head in 0..<4 {
        let rows = head * 7..<head * 7 + 5
        let others = rows.upperBound..<rows.upperBound + 2
        #expect(both.logSumExp[rows] == a.logSumExp[rows], "\(backend.name)")
        #expect(both.logSumExp[others] == b.logSumExp[others], "\(backend.name)")
      }
    }
  }

  @Test func refusesBlocksWithoutListsForAllPositions() throws {
    let blocks = try VisibleBlocks(
      queryBlockLength: 16,
      keyBlockLength: 16,
      visible: [[Int]](repeating: [0], count: 4)
    )
    let error = try error(AttentionOptions(mask: .causal, blocks: blocks))
    #expect(error?.code == .shapeMismatch)
    #expect(error?.message.hasPrefix("blocks: there are lists for 4 query blocks") == true)
  }

  /// Lists for positions that are still to come, and for their keys, change nothing yet.
  @Test func listsForTokensToComeDoNotMatterYet() throws {
    let visible = (0..<5).map { $0 == 0 ? [0] : [0, $0] }
    func result(_ visible: [[Int]]) throws -> TestResult {
      let blocks = try VisibleBlocks(queryBlockLength: 16, keyBlockLength: 16, visible: visible)
      return try run(AttentionOptions(mask: .causal, blocks: blocks))
    }
    let later = visible.map { $0 + [40] } + [[2], [40]]
    #expect(try result(later) == result(visible))
  }
}
