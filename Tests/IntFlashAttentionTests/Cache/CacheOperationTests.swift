import AttentionTestSupport
import IntFlashAttention
import Testing

/// Thousands of random operations on caches that share a pool: after each, counts, pages and results
/// are those of plain models.
@Suite struct CacheOperationTests {
  static let stepCount = 800

  /// Fails at the first step that goes wrong: those after it say nothing.
  @Test(arguments: KVCacheTests.precisions, [UInt64(1), 2])
  func everyStepIsThatOfTheModel(_ precision: Precision, _ seed: UInt64) throws {
    var caches = try ModelledCaches(precision, seed: seed)
    var counts: [ModelledCaches.Operation: Int] = [:]
    for step in 0..<Self.stepCount {
      let operation = caches.nextOperation()
      do {
        try caches.perform(operation)
      } catch let failure as ModelledCaches.Difference {
        Issue.record("step \(step), \(operation): \(failure.description)")
        return
      }
      counts[operation, default: 0] += 1
    }
    // The sequence of operations is fixed by its seed, and holds all of them.
    for operation in ModelledCaches.Operation.allCases {
      #expect(counts[operation, default: 0] > 5, "\(operation)")
    }
    #expect(caches.refusalCount > 5)
  }
}

/// The caches of a CPU pool, the same on the reference backend, and what they should be.
private struct ModelledCaches {
  enum Operation: CaseIterable {
    case create, append, appendNotFinite, fork, truncate, truncateTooFar, release, attend
  }

  /// What differs from the model.
  struct Difference: Error {
    let description: String
  }

  /// One sequence: its tokens as numbers of tokens in `table`, and pages by number.
  private struct Sequence {
    var tokens: [Int] = []
    var pages: [Int] = []
    let cache: KVCache
    let reference: KVCache
  }

  private static let pageLength = 64
  private static let pageCount = 14
  private static let longest = 330

  private let precision: Precision
  private let table: CachedInputs
  private let notFinite: CachedInputs
  private let pool: KVCachePool
  private let referencePool: KVCachePool
  private var sequences: [Sequence] = []
  private var random: TestRandom
  private var nextPage = 0
  /// Appends for which there were too few pages.
  private(set) var refusalCount = 0

  init(_ precision: Precision, seed: UInt64) throws {
    self.precision = precision
    table = try CachedInputs(
      queryHeads: 2,
      keyValueHeads: 1,
      length: 512,
      headDimension: 8,
      valueDimension: 5,
      .outlierChannel,
      seed: seed
    )
    var inputs = table.inputs
    for index in inputs.value.indices where index % 11 == 10 { inputs.value[index] = .infinity }
    notFinite = CachedInputs(inputs)
    pool = try Self.pool(precision, on: CPUBackend())
    referencePool = try Self.pool(precision, on: ReferenceBackend())
    random = TestRandom(seed: seed)
  }

  private static func pool(
    _ precision: Precision,
    on backend: any AttentionBackend
  ) throws -> KVCachePool {
    try KVCachePool(
      keyValueHeadCount: 1,
      headDimension: 8,
      valueDimension: 5,
      capacity: pageCount * pageLength,
      pageLength: pageLength,
      precision: precision,
      on: backend
    )
  }

  // MARK: Operations

  mutating func nextOperation() -> Operation {
    guard !sequences.isEmpty else { return .create }
    return switch random.next() % 32 {
    case 0..<2 where sequences.count < 6: .create
    case 2..<15: .append
    case 15: .appendNotFinite
    case 16..<18 where sequences.count < 6: .fork
    case 18..<21: .truncate
    case 21: .truncateTooFar
    case 22..<24: .release
    default: .attend
    }
  }

  mutating func perform(_ operation: Operation) throws {
    let index = sequences.indices.randomElement(using: &random) ?? 0
    switch operation {
    case .create:
      sequences.append(Sequence(cache: KVCache(in: pool), reference: KVCache(in: referencePool)))
    case .append: try append(to: index)
    case .appendNotFinite:
      let range = randomRange([12, 40, 90].randomElement(using: &random) ?? 12)
      let same = try sequences[index].both {
        Self.code { try notFinite.append(range, to: $0) }
      }
      try require(same == [.nonFiniteInput, .nonFiniteInput], "codes are \(same)")
    case .fork:
      let other = sequences[index]
      sequences.append(
        Sequence(
          tokens: other.tokens,
          pages: other.pages,
          cache: other.cache.fork(),
          reference: other.reference.fork()
        )
      )
    case .truncate:
      let count = Int.random(in: 0...sequences[index].tokens.count, using: &random)
      _ = try sequences[index].both { try $0.truncate(to: count) }
      sequences[index].tokens.removeLast(sequences[index].tokens.count - count)
      let kept = (count + Self.pageLength - 1) / Self.pageLength
      sequences[index].pages.removeLast(sequences[index].pages.count - kept)
    case .truncateTooFar:
      let count = [-1, sequences[index].tokens.count + 1].randomElement(using: &random) ?? -1
      let codes = try sequences[index].both { cache in
        Self.code { try cache.truncate(to: count) }
      }
      try require(codes == [.invalidArgument, .invalidArgument], "codes are \(codes)")
    case .release: sequences.remove(at: index)
    case .attend: try attend()
    }
    try checkCounts()
  }

  private mutating func append(to index: Int) throws {
    let length = [1, 1, Int.random(in: 2...9, using: &random), 64, 128, 150].randomElement(
      using: &random
    )
    let range = randomRange(min(length ?? 1, Self.longest - sequences[index].tokens.count))
    let owners = Dictionary(
      sequences.flatMap { $0.pages.map { ($0, 1) } },
      uniquingKeysWith: +
    )
    var pages = sequences[index].pages
    let end = sequences[index].tokens.count + range.count
    let isCut = !sequences[index].tokens.count.isMultiple(of: Self.pageLength)
    if isCut, !range.isEmpty, let last = pages.last, owners[last, default: 0] > 1 {
      pages.removeLast()
    }
    while pages.count * Self.pageLength < end {
      pages.append(nextPage)
      nextPage += 1
    }
    let added = Set(pages).subtracting(owners.keys).count
    let fits = added <= Self.pageCount - owners.count
    let table = table
    let codes = try sequences[index].both { cache in
      Self.code { try table.append(range, to: cache) }
    }
    let expected = fits ? nil : AttentionError.Code.outOfPages
    try require(codes == [expected, expected], "codes are \(codes) for \(added) more pages")
    guard fits else { return refusalCount += 1 }
    sequences[index].tokens += range
    sequences[index].pages = pages
  }

  private func checkCounts() throws {
    for sequence in sequences {
      let counts = [sequence.cache.count, sequence.reference.count]
      try require(
        counts == [sequence.tokens.count, sequence.tokens.count],
        "a cache of \(sequence.tokens.count) tokens counts \(counts)"
      )
    }
    let free = Self.pageCount - Set(sequences.flatMap(\.pages)).count
    for pool in [pool, referencePool] {
      try require(
        pool.freePageCount == free,
        "\(pool.freePageCount) pages are free, not \(free)"
      )
    }
  }

  // MARK: Results

  /// Attention of the last tokens of some of the caches, one of them perhaps twice, in one call.
  private mutating func attend() throws {
    let masks: [AttentionMask] = [.causal, .full, .sliding(left: 70, right: nil), .prefixCausal(prefix: 9)]
    let options = AttentionOptions(mask: masks.randomElement(using: &random) ?? .causal)
    var parts: [(sequence: Sequence, range: Range<Int>)] = []
    for _ in 0...random.next() % 3 {
      guard let sequence = sequences.randomElement(using: &random) else { continue }
      let most = min(sequence.tokens.count, random.next() % 2 == 0 ? 1 : 40)
      parts.append((sequence, randomRange(Int.random(in: 0...most, using: &random))))
    }
    func result(_ cache: (Sequence) -> KVCache) throws -> TestResult {
      try CachedInputs.attend(parts.map { (table, $0.range, cache($0.sequence)) }, options)
    }
    let result = try result(\.cache)
    expectSame(result, try result(\.reference), precision, table.inputs, "\(options.mask)")
    guard precision != .int4, precision != .int4KeyValue else { return }
    // What was once there and is no more has left no trace; 4-bit groups keep one.
    let alone = try parts.map { part in
      try CachedInputs.attend([(table, part.range, fresh(part.sequence.tokens))], options)
    }
    try require(
      result == .joined(alone, heads: table.shape.queryHeadCount),
      "not the bits of new caches with the same tokens"
    )
  }

  /// A cache of its own with these tokens, all at once.
  private func fresh(_ tokens: [Int]) throws -> KVCache {
    var inputs = table.inputs
    inputs.key = tokens.flatMap { table.inputs.key[$0 * 8..<$0 * 8 + 8] }
    inputs.value = tokens.flatMap { table.inputs.value[$0 * 5..<$0 * 5 + 5] }
    let cache = try table.cache(precision)
    try CachedInputs(inputs).append(0..<tokens.count, to: cache)
    return cache
  }

  private mutating func randomRange(_ count: Int) -> Range<Int> {
    let start = Int.random(in: 0...table.shape.keyValueLength - count, using: &random)
    return start..<start + count
  }

  private func require(_ holds: Bool, _ description: @autoclosure () -> String) throws {
    guard holds else { throw Difference(description: description()) }
  }

  private static func code(_ body: () throws -> Void) -> AttentionError.Code? {
    do {
      try body()
      return nil
    } catch { return (error as? AttentionError)?.code }
  }
}

extension ModelledCaches.Sequence {
  /// The same on both caches.
  func both<Result>(_ body: (KVCache) throws -> Result) rethrows -> [Result] {
    [try body(cache), try body(reference)]
  }
}
