import AttentionTestSupport
import IntFlashAttention
import Testing

/// A pool, a pool of the reference, and a plain model of every sequence in them: its tokens in an array and
/// its pages as objects.
struct CacheModel {
  /// A page of the model: as many owners as sequences refer to it.
  final class Page {}

  static let pageLength = 64
  static let pageCount = 14
  static let shape = (queryHeads: 2, keyHeads: 1, d: 8, dv: 5)

  /// A sequence three times.
  struct Sequence {
    var cache: KVCache
    var reference: KVCache
    var tokens: [Token] = []
    var pages: [Page] = []
  }

  struct Token {
    let key: [Float]
    let value: [Float]
  }

  enum Operation: CaseIterable {
    case create, append, appendOne, appendTooMuch, fork, truncate, truncateLittle, release
    case attend, attendOne, attendTogether, attendMasked
  }

  let precision: Precision
  let pool: KVCachePool
  let referencePool: KVCachePool
  var random: TestRandom
  var sequences: [Sequence] = []
  var counts: [Operation: Int] = [:]
  /// Of all calls so far, and the reference's.
  private(set) var outputs: [Float] = []
  private(set) var expectedOutputs: [Float] = []

  init(_ precision: Precision, seed: UInt64) throws {
    self.precision = precision
    random = TestRandom(seed: seed)
    func pool(on backend: any AttentionBackend) throws -> KVCachePool {
      try KVCachePool(
        keyValueHeadCount: Self.shape.keyHeads,
        headDimension: Self.shape.d,
        valueDimension: Self.shape.dv,
        capacity: Self.pageLength * Self.pageCount,
        pageLength: Self.pageLength,
        precision: precision,
        on: backend
      )
    }
    self.pool = try pool(on: CPUBackend())
    referencePool = try pool(on: ReferenceBackend())
  }

  // MARK: Operations

  mutating func perform(_ operation: Operation) throws {
    let index = Int.random(in: 0..<max(sequences.count, 1), using: &random)
    switch operation {
    case .create:
      guard sequences.count < 5 else { return }
      sequences.append(
        Sequence(cache: KVCache(in: pool), reference: KVCache(in: referencePool))
      )
    case .append: try append(Int.random(in: 1...130, using: &random), to: index)
    case .appendOne: try append(1, to: index)
    case .appendTooMuch: try append(Self.pageLength * Self.pageCount, to: index)
    case .fork:
      guard sequences.count < 5 else { return }
      var fork = sequences[index]
      fork.cache = fork.cache.fork()
      fork.reference = fork.reference.fork()
      sequences.append(fork)
    case .truncate, .truncateLittle:
      let count = sequences[index].tokens.count
      let most = operation == .truncate ? count : min(count, 3)
      try truncate(index, to: count - Int.random(in: 0...most, using: &random))
    case .release: sequences.remove(at: index)
    case .attend:
      try attend([
        (index, Int.random(in: 0...min(sequences[index].tokens.count, 9), using: &random))
      ])
    case .attendOne: try attend([(index, min(sequences[index].tokens.count, 1))])
    case .attendTogether:
      try attend(sequences.indices.map { ($0, min(sequences[$0].tokens.count, 2)) })
    case .attendMasked:
      try attend([(index, min(sequences[index].tokens.count, 3))], isMasked: true)
    }
  }

  private mutating func append(_ count: Int, to index: Int) throws {
    var sequence = sequences[index]
    let added = (0..<count).map { _ -> Token in
      // One value in fifty is an outlier.
      let factor: Float = random.uniform() < 0.02 ? 40 : 1
      return Token(
        key: (0..<Self.shape.d).map { _ in random.uniform() * 4 - 2 },
        value: (0..<Self.shape.dv).map { _ in (random.uniform() * 2 - 1) * factor }
      )
    }
    // The last page gets an owner of its own where it is shared and not full.
    let length = Self.pageLength
    let isCut = sequence.tokens.count % length != 0
    let isShared = isCut && owners(of: sequence.pages[sequence.pages.count - 1]) > 1
    let needed = (sequence.tokens.count + count + length - 1) / length
    let taken = needed - sequence.pages.count + (isShared ? 1 : 0)
    let key = try Tensor(added.flatMap(\.key), shape: [Self.shape.keyHeads, count, Self.shape.d])
    let value = try Tensor(
      added.flatMap(\.value),
      shape: [Self.shape.keyHeads, count, Self.shape.dv]
    )
    guard taken <= Self.pageCount - usedPages else {
      for cache in [sequence.cache, sequence.reference] {
        let error = #expect(throws: AttentionError.self) {
          try cache.append(key: key.view, value: value.view)
        }
        #expect(error?.code == .outOfPages)
      }
      return
    }
    for cache in [sequence.cache, sequence.reference] {
      try cache.append(key: key.view, value: value.view)
    }
    if isShared { sequence.pages[sequence.pages.count - 1] = Page() }
    while sequence.pages.count < needed { sequence.pages.append(Page()) }
    sequence.tokens += added
    sequences[index] = sequence
  }

  private mutating func truncate(_ index: Int, to count: Int) throws {
    try sequences[index].cache.truncate(to: count)
    try sequences[index].reference.truncate(to: count)
    let length = Self.pageLength
    sequences[index].tokens.removeLast(sequences[index].tokens.count - count)
    let pages = sequences[index].pages.count - (count + length - 1) / length
    sequences[index].pages.removeLast(pages)
  }

  // MARK: Pages

  private func owners(of page: Page) -> Int {
    sequences.count { $0.pages.contains { $0 === page } }
  }

  private var usedPages: Int {
    Set(sequences.flatMap { $0.pages.map(ObjectIdentifier.init) }).count
  }

  func checkPages(_ comment: Comment) throws {
    #expect(pool.freePageCount == Self.pageCount - usedPages, "\(comment)")
    #expect(referencePool.freePageCount == Self.pageCount - usedPages, "\(comment)")
    for sequence in sequences where sequence.cache.count != sequence.tokens.count {
      Issue.record("\(comment): \(sequence.cache.count) tokens, not \(sequence.tokens.count)")
    }
  }

  // MARK: Attention

  /// Attention of the last tokens of some sequences: the reference's, and for whatever does not depend
  /// on its history the bits of one prefill of the same tokens, alone.
  private mutating func attend(_ parts: [(index: Int, queries: Int)], isMasked: Bool = false) throws
  {
    let total = parts.reduce(0) { $0 + $1.queries }
    let (heads, dv) = (Self.shape.queryHeads, Self.shape.dv)
    let longest = parts.map { sequences[$0.index].tokens.count }.max() ?? 0
    let query = (0..<heads * total * Self.shape.d).map { _ in random.uniform() * 4 - 2 }
    let mask = (0..<total * longest).map { _ -> Float in
      random.uniform() < 0.5 ? random.uniform() : -.infinity
    }
    let window = Int.random(in: 0...200, using: &random)
    let options = [
      AttentionOptions(mask: .causal), AttentionOptions(mask: .causal),
      AttentionOptions(mask: .sliding(left: window, right: 0)),
      AttentionOptions(softcap: 3, mask: .prefixCausal(prefix: window)),
    ][Int.random(in: 0..<4, using: &random)]

    func run(_ caches: [KVCache]) throws -> TestResult {
      var offsets = [0]
      for part in parts { offsets.append((offsets.last ?? 0) + part.queries) }
      let q = try Tensor(query, shape: [heads, total, Self.shape.d])
      var output = try Tensor(
        [Float](repeating: .nan, count: heads * total * dv),
        shape: [heads, total, dv]
      )
      var sums = try Tensor([Float](repeating: .nan, count: heads * total), shape: [heads, total])
      let elements = try Tensor(mask, shape: [total, longest])
      try CachedAttention(queryHeadCount: heads, options: options, pool: caches[0].pool).run(
        query: q.view,
        offsets: offsets,
        caches: caches,
        mask: isMasked && longest > 0 ? elements.view : nil,
        into: output.mutableView,
        logSumExp: sums.mutableView
      )
      return TestResult(output: output.copyFloats(), logSumExp: sums.copyFloats())
    }
    let result = try run(parts.map { sequences[$0.index].cache })
    let reference = try run(parts.map { sequences[$0.index].reference })
    var inputs = TestInputs(
      try AttentionShape(
        queryHeadCount: heads,
        keyValueHeadCount: Self.shape.keyHeads,
        queryLength: total,
        keyValueLength: 1,
        headDimension: Self.shape.d,
        valueDimension: dv
      )
    )
    // The largest value, by which single rows are measured.
    inputs.value = parts.flatMap { sequences[$0.index].tokens.flatMap(\.value) }
    expectSameRows(result, reference, precision, inputs, "\(options), masked \(isMasked)")
    outputs += result.output
    expectedOutputs += reference.output
    guard precision != .int4, precision != .int4KeyValue, total > 0, !isMasked else { return }
    #expect(
      try run(fresh(parts.map { sequences[$0.index].tokens })) == result,
      "one prefill of each"
    )
  }

  /// Sequences of these tokens in a pool of their own.
  private func fresh(_ sequences: [[Token]]) throws -> [KVCache] {
    let pages = sequences.reduce(1) { $0 + $1.count / Self.pageLength + 1 }
    let pool = try KVCachePool(
      keyValueHeadCount: Self.shape.keyHeads,
      headDimension: Self.shape.d,
      valueDimension: Self.shape.dv,
      capacity: pages * Self.pageLength,
      precision: precision
    )
    return try sequences.map { tokens in
      let cache = KVCache(in: pool)
      guard !tokens.isEmpty else { return cache }
      let key = try Tensor(tokens.flatMap(\.key), shape: [1, tokens.count, Self.shape.d])
      let value = try Tensor(tokens.flatMap(\.value), shape: [1, tokens.count, Self.shape.dv])
      try cache.append(key: key.view, value: value.view)
      return cache
    }
  }
}
