/// The keys and values of one sequence of tokens, quantised once, as they come.
///
/// ```swift
/// let cache = try KVCache(keyValueHeadCount: 2, headDimension: 64, capacity: 4096)
/// try cache.append(key: key.view, value: value.view)  // [Hkv, tokens, D]
/// try CachedAttention(queryHeadCount: 8, pool: cache.pool)
///   .run(query: query.view, cache: cache, into: output.mutableView)
/// ```
///
/// **Reproducibility.** What a token is stored as depends on the tokens before it, not on how many
/// came at once: attention gives the same bits for one prefill, for chunks and token by token,
/// contiguous or paged, alone or in a batch. With 4-bit precisions that holds for chunks that end at
/// positions 64 + 128 n; in between, the tokens after the last such position are still in 8 bits.
///
/// A cache belongs to one task at a time; forks of it may be in others.
public final class KVCache {
  /// Where its pages come from.
  public let pool: KVCachePool
  /// Tokens in the cache.
  public private(set) var count = 0
  /// Position of the first token, for rotary embeddings.
  ///
  /// Other than 0 where the cache begins in the middle of a text: token i stands at
  /// `firstPosition + i`.
  public var firstPosition = 0

  private var pages: [Int32] = []
  private var units: [Int32] = []
  private let sequence: any KVCacheSequence

  /// An empty sequence in a pool.
  public init(in pool: KVCachePool) {
    self.pool = pool
    sequence = pool.store.makeSequence()
  }

  /// An empty sequence with a pool of its own; see
  /// ``KVCachePool/init(keyValueHeadCount:headDimension:valueDimension:capacity:pageLength:precision:on:)``.
  ///
  /// - Parameters:
  ///   - keyValueHeadCount: Hkv.
  ///   - headDimension: D.
  ///   - valueDimension: Dv; nil is D.
  ///   - capacity: tokens that there is room for.
  ///   - precision: how tokens are stored.
  ///   - backend: where attention is computed.
  /// - Throws: `AttentionError`, as the initialiser of the pool.
  public convenience init(
    keyValueHeadCount: Int,
    headDimension: Int,
    valueDimension: Int? = nil,
    capacity: Int,
    precision: Precision = .int8,
    on backend: any AttentionBackend = CPUBackend()
  ) throws(AttentionError) {
    self.init(
      in: try KVCachePool(
        keyValueHeadCount: keyValueHeadCount,
        headDimension: headDimension,
        valueDimension: valueDimension,
        capacity: capacity,
        precision: precision,
        on: backend
      )
    )
  }

  private init(forkOf other: KVCache) {
    pool = other.pool
    count = other.count
    firstPosition = other.firstPosition
    pages = other.pages
    units = other.units
    sequence = other.sequence.fork(count: other.count, units: other.units)
    pool.share(pages[...])
  }

  deinit {
    pool.release(pages[...])
  }

  // MARK: Tokens

  /// Appends tokens.
  ///
  /// **Shapes.** key [Hkv, n, D], value [Hkv, n, Dv], or with a leading dimension of 1; float32,
  /// float16 or bfloat16, of any strides with neighbours in the last dimension side by side.
  ///
  /// - Complexity: O(n · Hkv · (D + Dv)).
  /// - Parameters:
  ///   - key: new keys.
  ///   - value: new values.
  /// - Throws: `AttentionError` with code `.shapeMismatch`, `.unsupportedElementType`,
  ///   `.invalidArgument`, `.nonFiniteInput`, `.valueOutOfRange` or `.outOfPages`; then the cache is
  ///   as it was.
  public func append(key: TensorView, value: TensorView) throws(AttentionError) {
    try store(key: key, value: value, rotary: nil)
  }

  /// As ``append(key:value:)``, with keys that get their positions on the way: what is stored, means
  /// included, is what ``RotaryEmbedding/apply(to:firstPosition:)`` gives, in one pass over the keys.
  ///
  /// Token i of the sequence stands at ``firstPosition`` + i. Queries get theirs from a
  /// ``CachedAttention`` with the same embedding.
  ///
  /// - Parameters:
  ///   - key: new keys, without positions.
  ///   - value: new values.
  ///   - rotary: the embedding.
  /// - Throws: as ``append(key:value:)``; `.invalidArgument` also for positions that the embedding
  ///   does not have, `.shapeMismatch` where it has more channels than a head.
  public func append(
    key: TensorView,
    value: TensorView,
    rotary: RotaryEmbedding
  ) throws(AttentionError) {
    try store(key: key, value: value, rotary: rotary)
  }

  private func store(
    key: TensorView,
    value: TensorView,
    rotary: RotaryEmbedding?
  ) throws(AttentionError) {
    let (key, value) = (try key.operand(), try value.operand())
    let tokens = key.shape[2]
    for (name, shape, elementType, stride, expected) in [
      (
        "key", key.shape, key.elementType, key.strides[3],
        [1, pool.keyValueHeadCount, tokens, pool.headDimension]
      ),
      (
        "value", value.shape, value.elementType, value.strides[3],
        [1, pool.keyValueHeadCount, tokens, pool.valueDimension]
      ),
    ] {
      guard shape == expected else {
        throw AttentionError(
          .shapeMismatch,
          "\(name) has shape \(shape), but the cache takes \(expected)"
        )
      }
      try OperandCheck.requireElements(name, elementType, stride: stride, dimension: shape[3])
    }
    guard tokens > 0 else { return }
    var added = KVCacheTokens(key: .init(key), value: .init(value))
    if let rotary {
      let first = firstPosition &+ count
      try rotary.check(dimension: pool.headDimension, positions: first, count: tokens)
      guard pool.store.appliesRotary else {
        let turned = try rotary.apply(to: key, firstPosition: first)
        added = KVCacheTokens(key: .init(turned.view), value: .init(value))
        try store(added)
        extendLifetime(turned)
        return
      }
      added.rotary = (rotary, first)
    }
    try store(added)
  }

  private func store(_ added: KVCacheTokens) throws(AttentionError) {
    let tokens = added.count
    try sequence.check(added)
    try reserve(tokens)
    sequence.append(added, count: count, units: units)
    count += tokens
  }

  /// Takes the pages that `tokens` more need, the last one of its own where it is shared.
  private func reserve(_ tokens: Int) throws(AttentionError) {
    let needed = CPUTileSizes.pieceCount(count + tokens, pool.pageLength)
    let isCut = !count.isMultiple(of: pool.pageLength)
    let copies = if isCut, let last = pages.last { pool.isShared(last) } else { false }
    let taken = try pool.takePages(needed - pages.count + (copies ? 1 : 0))
    guard !taken.isEmpty else { return }
    var added = taken[...]
    if copies, let own = added.popFirst(), let shared = pages.popLast() {
      pool.copyPage(from: shared, to: own)
      pages.append(own)
      pool.release([shared])
    }
    pages += added
    findUnits()
  }

  private func findUnits() {
    let unitsPerPage = Int32(pool.pageLength / KVCacheLayout.unitLength)
    units = pages.flatMap { page in (0..<unitsPerPage).map { page * unitsPerPage + $0 } }
  }

  /// Forgets all but the first tokens; pages that are no longer used go back to the pool.
  ///
  /// - Parameter count: how many tokens stay, at most ``count``.
  /// - Throws: `AttentionError` with code `.invalidArgument`.
  public func truncate(to count: Int) throws(AttentionError) {
    guard count >= 0, count <= self.count else {
      throw AttentionError(
        .invalidArgument,
        "count is \(count); it must be between 0 and the \(self.count) tokens in the cache"
      )
    }
    sequence.truncate(to: count, units: units)
    let kept = CPUTileSizes.pieceCount(count, pool.pageLength)
    pool.release(pages[kept...])
    pages.removeLast(pages.count - kept)
    findUnits()
    self.count = count
  }

  /// Another sequence with the same tokens, which shares all pages.
  ///
  /// Nothing is copied until one of the two appends: then it copies at most one page.
  public func fork() -> KVCache { KVCache(forkOf: self) }

  /// Takes the tokens of a snapshot that fits the pool; there are none yet.
  func restore(_ snapshot: KVCacheSnapshot) throws(AttentionError) {
    guard sequence.restores else {
      throw AttentionError(
        .unsupported,
        "backend \(pool.backendName) takes no snapshots of caches"
      )
    }
    try reserve(snapshot.count)
    sequence.restore(snapshot, units: units)
    count = snapshot.count
    firstPosition = snapshot.firstPosition
  }

  /// The cache as part of a call.
  func part(queries: Range<Int>) -> KVCacheCall.Part {
    KVCacheCall.Part(
      queries: queries,
      sequence: sequence,
      count: count,
      units: units,
      firstPosition: firstPosition &+ count &- queries.count
    )
  }
}
