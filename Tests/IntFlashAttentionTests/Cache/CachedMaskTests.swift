import AttentionTestSupport
import IntFlashAttention
import Testing

/// Masks, precisions, head counts and ways into a cache, every pair of which comes together: the CPU
/// backend against the reference, and the reference against a textbook's softmax.
@Suite struct CachedMaskTests {
  /// One combination.
  struct Case: Sendable, CustomTestStringConvertible {
    let mask: Masks
    let precision: Precision
    let heads: (query: Int, keyValue: Int)
    let kind: Kinds
    let extra: Extras
    let length: Int
    let queries: Int

    var testDescription: String {
      "\(mask), \(precision), heads \(heads.query)/\(heads.keyValue), \(kind), \(extra), \(queries) of "
        + "\(length)"
    }

    /// As many queries as there are tokens: no more.
    var range: Range<Int> { max(length - queries, 0)..<length }
  }

  /// Which keys are seen.
  enum Masks: CaseIterable, Sendable {
    case full, causal, window, prefix, shortPrefix, blocks, causalBlocks, raggedBlocks

    func options(length: Int) throws -> AttentionOptions {
      switch self {
      case .full: AttentionOptions()
      case .causal: AttentionOptions(mask: .causal)
      case .window: AttentionOptions(mask: .sliding(left: 90, right: 3))
      case .prefix: AttentionOptions(mask: .prefixCausal(prefix: 77))
      case .shortPrefix: AttentionOptions(mask: .prefixCausal(prefix: 20))
      case .blocks: AttentionOptions(blocks: try Self.blocks(length, 64, 64))
      case .causalBlocks: AttentionOptions(mask: .causal, blocks: try Self.blocks(length, 16, 128))
      case .raggedBlocks: AttentionOptions(blocks: try Self.blocks(length, 7, 13))
      }
    }

    /// Every third query block sees nothing.
    private static func blocks(_ length: Int, _ queries: Int, _ keys: Int) throws -> VisibleBlocks {
      var random = TestRandom(seed: 5)
      return try VisibleBlocks(
        queryBlockLength: queries,
        keyBlockLength: keys,
        visible: (0..<(length + queries - 1) / queries).map { row in
          (0..<(length + keys - 1) / keys).filter { _ in row % 3 != 2 && random.uniform() < 0.6 }
        }
      )
    }
  }

  /// How the tokens come, and what else is in the call.
  enum Kinds: CaseIterable, Sendable {
    case whole, chunks, scattered, forked, truncated, ragged
  }

  /// What comes beside.
  enum Extras: CaseIterable, Sendable {
    case nothing, additive, boolean, bfloat16, perKey, perRow, hiddenRows, hiddenTiles
    case alibi, sink, capped, everything, everythingCapped

    /// For `queries` rows of `heads`, and `keys` or more columns.
    func additions(heads h: Int, queries q: Int, keys k: Int) -> TestAdditions {
      var additions = TestAdditions()
      switch self {
      case .nothing, .capped: break
      case .additive: additions.mask = Self.draw([h, q, k])
      case .boolean:
        additions.maskType = .int8
        additions.mask = (Self.draw([q, k]).elements.map { $0 > 0 ? 1 : 0 }, [q, k])
      case .bfloat16:
        additions.maskType = .bfloat16
        additions.mask = Self.draw([1, q, k])
      case .perKey: additions.mask = Self.draw([h, 1, k])
      case .perRow: additions.mask = Self.draw([q, 1])
      case .hiddenRows:
        additions.mask = Self.draw([q, k])
        for index in 0..<q * k where index / k % 3 == 1 {
          additions.mask?.elements[index] = -.infinity
        }
      case .hiddenTiles:
        additions.mask = Self.draw([h, q, k])
        for index in 0..<h * q * k where (64..<192).contains(index % k) {
          additions.mask?.elements[index] = -.infinity
        }
      case .alibi: additions.alibiSlopes = Alibi.slopes(headCount: h)
      case .sink: additions.sinks = [1.5, -.infinity, 30, -200].prefix(h).map(\.self)
      case .everything, .everythingCapped:
        additions.mask = Self.draw([h, q, k])
        additions.alibiSlopes = Alibi.slopes(headCount: h)
        additions.sinks = [0.25, 3, -1, 2].prefix(h).map(\.self)
      }
      return additions
    }

    /// Normal numbers that bfloat16 holds; a third of them −∞.
    private static func draw(_ shape: [Int]) -> (elements: [Float], shape: [Int]) {
      let count = shape.reduce(1, *)
      var elements: [Float] = []
      while elements.count < count { elements += drawn }
      return (Array(elements.prefix(count)), shape)
    }

    /// As many as no length divides.
    private static let drawn = {
      var random = TestRandom(seed: 23)
      return (0..<9973).map { _ -> Float in
        let element = BFloat16(random.normal()).float
        return random.uniform() < 0.33 ? -.infinity : element
      }
    }()
  }

  static let heads = [(1, 1), (4, 2), (3, 1)]
  static let precisions = KVCacheTests.precisions
  /// Around the first tile, the second and a unit; and how many are queries.
  static let lengths = [(30, 30), (64, 9), (65, 65), (130, 1), (200, 40), (331, 130), (450, 17)]
  static let pageLengths = [64, 128]

  /// Every pair of values of two parameters comes together in some case.
  static let pairwise = Pairwise.rows([
    Masks.allCases.count, precisions.count, heads.count, Kinds.allCases.count,
    Extras.allCases.count,
    lengths.count,
  ]).map { row in
    Case(
      mask: Masks.allCases[row[0]],
      precision: precisions[row[1]],
      heads: heads[row[2]],
      kind: Kinds.allCases[row[3]],
      extra: Extras.allCases[row[4]],
      length: lengths[row[5]].0,
      queries: lengths[row[5]].1
    )
  }

  /// The sequence of a case in a cache, by its way.
  private func cache(
    _ test: Case,
    _ tokens: CachedInputs,
    _ pool: KVCachePool
  ) throws -> KVCache {
    var cache = KVCache(in: pool)
    switch test.kind {
    case .whole, .ragged: try tokens.append(0..<test.length, to: cache)
    case .chunks:
      for start in stride(from: 0, to: test.length, by: 37) {
        try tokens.append(start..<min(start + 37, test.length), to: cache)
      }
    case .scattered:
      // Pages that others gave back, in another order, between pages that they keep.
      var others = (0..<4).map { _ in KVCache(in: pool) }
      for other in others + others {
        try tokens.append(0..<min(test.length, 70), to: other)
      }
      others.remove(at: 2)
      others.removeFirst()
      try tokens.append(0..<test.length, to: cache)
    case .forked:
      let half = test.length / 2
      try tokens.append(0..<half, to: cache)
      let other = cache
      cache = cache.fork()
      try tokens.append(half..<test.length, to: cache)
      try tokens.append(0..<min(half, 5), to: other)
    case .truncated:
      try tokens.append(0..<test.length, to: cache)
      let kept = test.length * 2 / 3
      try cache.truncate(to: kept)
      try tokens.append(kept..<test.length, to: cache)
    }
    return cache
  }

  private func run(
    _ test: Case,
    _ tokens: CachedInputs,
    on backend: any AttentionBackend
  ) throws -> TestResult {
    let pool = try KVCachePool(
      keyValueHeadCount: test.heads.keyValue,
      headDimension: tokens.shape.headDimension,
      valueDimension: tokens.shape.valueDimension,
      capacity: 3200,
      pageLength: Self.pageLengths[test.length % 2],
      precision: test.precision,
      on: backend
    )
    var options = try test.mask.options(length: test.length)
    if test.extra == .capped || test.extra == .everythingCapped { options.softcap = 5 }
    let cache = try cache(test, tokens, pool)
    var parts = [(tokens, test.range, cache)]
    if test.kind == .ragged {
      let short = KVCache(in: pool)
      try tokens.append(0..<min(test.length, 21), to: short)
      parts = [
        (tokens, short.count - 1..<short.count, short), (tokens, test.range, cache),
        (tokens, 0..<0, KVCache(in: pool)), (tokens, 0..<short.count, short),
      ]
    }
    let additions = test.extra.additions(
      heads: test.heads.query,
      queries: parts.reduce(0) { $0 + $1.1.count },
      keys: test.length + (test.kind == .ragged ? 3 : 0)
    )
    return try CachedInputs.attend(
      parts.map { (inputs: $0.0, range: $0.1, cache: $0.2) },
      options,
      additions
    )
  }

  /// Every instruction set against the reference of the same recipe; integers give the same bits.
  @Test(arguments: pairwise)
  func matchesReference(_ test: Case) throws {
    let tokens = try CachedInputs(
      queryHeads: test.heads.query,
      keyValueHeads: test.heads.keyValue,
      length: test.length,
      headDimension: 24,
      valueDimension: 20,
      test.length % 2 == 0 ? .outlierChannel : .hugeValue,
      seed: 17
    )
    let reference = try run(test, tokens, on: ReferenceBackend())
    var integerBits: TestResult?
    for instructionSet in InstructionSet.supported {
      let result = try run(test, tokens, on: CPUBackend(instructionSet: instructionSet))
      expectSame(result, reference, test.precision, tokens.inputs, "\(instructionSet)")
      guard test.precision.recipe.exponential == .table64 else { continue }
      #expect(result == integerBits ?? result, "\(instructionSet)")
      integerBits = result
    }
  }

  /// Where a sequence comes from does not change a bit: each way against one prefill alone.
  ///
  /// Four-bit groups that were cut are others, so `int4` takes part in the ways that leave them whole.
  @Test(arguments: Masks.allCases, precisions)
  func theWayDoesNotChangeABit(_ mask: Masks, _ precision: Precision) throws {
    let isInt4 = precision == .int4 || precision == .int4KeyValue
    for extra in [Extras.nothing, .everything] {
      func result(_ kind: Kinds) throws -> TestResult {
        let test = Case(
          mask: mask,
          precision: precision,
          heads: (4, 2),
          kind: kind,
          extra: extra,
          length: 333,
          queries: 50
        )
        let tokens = try CachedInputs(length: 333, headDimension: 16, seed: 8)
        return try run(test, tokens, on: CPUBackend())
      }
      let expected = try result(.whole)
      for kind in [Kinds.chunks, .scattered, .forked, .truncated]
      where !isInt4 || kind == .scattered || kind == .chunks || kind == .forked {
        #expect(try result(kind) == expected, "\(kind), \(extra)")
      }
    }
  }

  /// Exact attention of both backends against a textbook that knows nothing of caches.
  @Test(arguments: Masks.allCases, Extras.allCases)
  func matchesNaiveAttention(_ mask: Masks, _ extra: Extras) throws {
    let length = 157
    let tokens = try CachedInputs(length: length, headDimension: 8, valueDimension: 5, seed: 3)
    var options = try mask.options(length: length)
    if extra == .capped || extra == .everythingCapped { options.softcap = 2 }
    // The textbook counts blocks from the first query: one that begins a block.
    let first = 128 - 128 % (options.blocks?.queryBlockLength ?? 1)
    let range = first..<length
    let additions = extra.additions(heads: 4, queries: range.count, keys: length)
    let expected = try Self.lastRows(range, of: tokens).naive(
      Self.shifted(options, by: first),
      additions
    )
    for backend in [ReferenceBackend(), CPUBackend()] as [any AttentionBackend] {
      let cache = try tokens.cache(.float32, on: backend)
      try tokens.append(0..<length, to: cache)
      let result = try tokens.attend(range, cache, options, additions)
      expectSame(result, expected, .float32, tokens.inputs, "\(backend.name)")
    }
  }

  /// One call with the last queries and all tokens.
  private static func lastRows(_ range: Range<Int>, of tokens: CachedInputs) throws -> TestInputs {
    let shape = tokens.shape
    var inputs = TestInputs(
      try AttentionShape(
        queryHeadCount: shape.queryHeadCount,
        keyValueHeadCount: shape.keyValueHeadCount,
        queryLength: range.count,
        keyValueLength: shape.keyValueLength,
        headDimension: shape.headDimension,
        valueDimension: shape.valueDimension
      )
    )
    inputs.query = try tokens.query(range).copyFloats()
    inputs.key = tokens.inputs.key
    inputs.value = tokens.inputs.value
    return inputs
  }

  private static func shifted(
    _ options: AttentionOptions,
    by first: Int
  ) throws -> AttentionOptions {
    var options = options
    options.blocks = try options.blocks.map {
      try VisibleBlocks(
        queryBlockLength: $0.queryBlockLength,
        keyBlockLength: $0.keyBlockLength,
        visible: Array($0.visible.dropFirst(first / $0.queryBlockLength))
      )
    }
    return options
  }
}
