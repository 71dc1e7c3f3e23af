/// Attention of queries to cached keys and values: one sequence or many in a call.
///
/// Prefill chunks and decoding can be mixed; the work of all sequences is spread over the threads
/// together. The bits of a row do not depend on what else is in the call. Everything that changes
/// logits (``AttentionOptions``, masks, slopes, sinks) means what it means in ``AttentionPlan``, see
/// <doc:Masks>; positions and blocks count from the first token of a sequence, so that a row sees the
/// same in whatever chunk it comes.
public struct CachedAttention: Sendable {
  /// Hq, a multiple of the pool's Hkv.
  public let queryHeadCount: Int
  /// Scale, cap, mask and blocks; the last query of a sequence stands at its last token.
  ///
  /// Query blocks of ``AttentionOptions/blocks`` have positions i / `queryBlockLength`. There must be
  /// lists for all positions of a call's queries; there may be more, and what they say of keys that are
  /// still to come does not matter yet.
  public let options: AttentionOptions
  /// What turns queries by their positions on the way, as ``KVCache/append(key:value:rotary:)`` does
  /// with keys; nil for queries that have their positions.
  public let rotary: RotaryEmbedding?
  /// Where the caches are.
  public let pool: KVCachePool

  /// Plans calls on a pool.
  ///
  /// - Parameters:
  ///   - queryHeadCount: Hq.
  ///   - options: causal unless given.
  ///   - rotary: turns queries by their positions; nil where they have been turned.
  ///   - pool: the pool of all caches of a call.
  /// - Throws: `AttentionError` with code `.invalidArgument` or `.shapeMismatch`.
  public init(
    queryHeadCount: Int,
    options: AttentionOptions = AttentionOptions(mask: .causal),
    rotary: RotaryEmbedding? = nil,
    pool: KVCachePool
  ) throws(AttentionError) {
    _ = try AttentionShape(
      queryHeadCount: queryHeadCount,
      keyValueHeadCount: pool.keyValueHeadCount,
      queryLength: 1,
      keyValueLength: 1,
      headDimension: pool.headDimension,
      valueDimension: pool.valueDimension
    )
    try options.validate()
    if let rotary { try rotary.check(dimension: pool.headDimension, positions: 0, count: 1) }
    self.queryHeadCount = queryHeadCount
    self.options = options
    self.rotary = rotary
    self.pool = pool
  }

  /// Attention of the last tokens of one sequence, whose keys and values are already in the cache.
  ///
  /// - Parameters:
  ///   - query: [Hq, n, D], or with a leading dimension of 1.
  ///   - cache: a sequence of the pool.
  ///   - mask: broadcast to [Hq, n, tokens].
  ///   - alibiSlopes: [Hq].
  ///   - sinks: [Hq].
  ///   - output: [Hq, n, Dv].
  /// - Throws: as ``run(query:offsets:caches:mask:alibiSlopes:sinks:into:)``.
  public func run(
    query: TensorView,
    cache: KVCache,
    mask: TensorView? = nil,
    alibiSlopes: TensorView? = nil,
    sinks: TensorView? = nil,
    into output: borrowing MutableTensorView
  ) throws(AttentionError) {
    let query = try query.operand()
    try run(
      query: query,
      offsets: [0, query.shape[2]],
      caches: [cache],
      mask: mask,
      alibiSlopes: alibiSlopes,
      sinks: sinks,
      into: output
    )
  }

  /// Attention of the last tokens of several sequences, packed one after the other.
  ///
  /// **Shapes.** query [Hq, T, D], output [Hq, T, Dv], or with a leading dimension of 1, each
  /// float32, float16 or bfloat16, of any strides with neighbours in the last dimension side by
  /// side. Sequence i has the queries `offsets[i] ..< offsets[i + 1]`.
  ///
  /// **Edge cases.** A row that sees no token gives zeros. After an error the output is as it was.
  ///
  /// - Parameters:
  ///   - query: Q of all sequences.
  ///   - offsets: one more than there are caches, from 0 to T, not falling.
  ///   - caches: the sequences, all of this pool; one may occur several times.
  ///   - mask: broadcast to [Hq, T, L], packed as the queries are: a row is a query, a column a token of
  ///     its sequence. L is at least the number of tokens of each sequence that has queries; what lies
  ///     beyond a sequence's own tokens is not read. Elements are as for
  ///     ``AttentionPlan/run(query:key:value:mask:alibiSlopes:sinks:into:)``.
  ///   - alibiSlopes: [Hq], or [sequences, Hq].
  ///   - sinks: [Hq], or [sequences, Hq].
  ///   - output: O; it may not share memory with an input.
  /// - Throws: `AttentionError` with code `.shapeMismatch`, `.unsupportedElementType`,
  ///   `.invalidArgument`, `.overlappingOutput`, `.nonFiniteInput`, `.valueOutOfRange` or
  ///   `.outOfMemory`.
  public func run(
    query: TensorView,
    offsets: [Int],
    caches: [KVCache],
    mask: TensorView? = nil,
    alibiSlopes: TensorView? = nil,
    sinks: TensorView? = nil,
    into output: borrowing MutableTensorView
  ) throws(AttentionError) {
    var call = try call(query: query, offsets: offsets, caches: caches, output: output.view)
    try add(mask: mask, alibiSlopes: alibiSlopes, sinks: sinks, to: &call)
    try attend(call)
  }

  /// As ``run(query:offsets:caches:mask:alibiSlopes:sinks:into:)``, with the log-sum-exp of every row.
  ///
  /// - Parameters:
  ///   - query: Q of all sequences.
  ///   - offsets: where each sequence's queries begin, and T.
  ///   - caches: the sequences.
  ///   - mask: broadcast to [Hq, T, L].
  ///   - alibiSlopes: [Hq], or [sequences, Hq].
  ///   - sinks: [Hq], or [sequences, Hq].
  ///   - output: O.
  ///   - logSumExp: float32 [Hq, T], of any strides: that of the unshifted logits, −∞ for a row that
  ///     sees no token. A sink is in it.
  /// - Throws: as ``run(query:offsets:caches:mask:alibiSlopes:sinks:into:)``.
  public func run(
    query: TensorView,
    offsets: [Int],
    caches: [KVCache],
    mask: TensorView? = nil,
    alibiSlopes: TensorView? = nil,
    sinks: TensorView? = nil,
    into output: borrowing MutableTensorView,
    logSumExp: borrowing MutableTensorView
  ) throws(AttentionError) {
    let view = logSumExp.view
    var call = try call(query: query, offsets: offsets, caches: caches, output: output.view)
    call.logSumExp = try checked(logSumExp: view, tokens: try query.operand().shape[2])
    try OverlapCheck.requireDistinctElements(view, name: "logSumExp")
    try OverlapCheck.requireDisjoint(view, "logSumExp", call.query.view, "query")
    try OverlapCheck.requireDisjoint(view, "logSumExp", call.output.view, "output")
    try add(mask: mask, alibiSlopes: alibiSlopes, sinks: sinks, to: &call)
    try attend(call)
  }

  // MARK: Checks

  private func call(
    query: borrowing TensorView,
    offsets: [Int],
    caches: [KVCache],
    output: borrowing TensorView
  ) throws(AttentionError) -> KVCacheCall {
    let (query, output) = (try query.operand(), try output.operand())
    let tokens = query.shape[2]
    for (name, shape, elementType, stride, expected) in [
      (
        "query", query.shape, query.elementType, query.strides[3],
        [1, queryHeadCount, tokens, pool.headDimension]
      ),
      (
        "output", output.shape, output.elementType, output.strides[3],
        [1, queryHeadCount, tokens, pool.valueDimension]
      ),
    ] {
      guard shape == expected else {
        throw AttentionError(
          .shapeMismatch,
          "\(name) has shape \(shape), but this attention takes \(expected)"
        )
      }
      try OperandCheck.requireElements(name, elementType, stride: stride, dimension: shape[3])
    }
    guard offsets.count == caches.count + 1, offsets.first == 0, offsets.last == tokens,
      zip(offsets, offsets.dropFirst()).allSatisfy({ $0 <= $1 })
    else {
      throw AttentionError(
        .invalidArgument,
        "offsets \(offsets) for \(caches.count) caches must be \(caches.count + 1) numbers from 0 to "
          + "the \(tokens) query tokens, none smaller than the one before"
      )
    }
    for (index, cache) in caches.enumerated() where cache.pool !== pool {
      throw AttentionError(.invalidArgument, "cache \(index) belongs to another pool")
    }
    try OverlapCheck.requireDistinctElements(output, name: "output")
    try OverlapCheck.requireDisjoint(output, "output", query, "query")
    return KVCacheCall(
      query: .init(query),
      output: .init(output),
      queryHeadCount: queryHeadCount,
      softmaxScale: options.softmaxScale ?? 1 / Float(pool.headDimension).squareRoot(),
      options: options,
      parts: zip(caches, zip(offsets, offsets.dropFirst())).map { cache, bounds in
        cache.part(queries: bounds.0..<bounds.1)
      },
      rotary: rotary
    )
  }

  private func checked(
    logSumExp view: borrowing TensorView,
    tokens: Int
  ) throws(AttentionError) -> AttentionOperands.Operand {
    guard view.elementType == .float32 else {
      throw AttentionError(
        .unsupportedElementType,
        "logSumExp is \(view.elementType.rawValue); it must be float32"
      )
    }
    guard view.shape == [queryHeadCount, tokens] else {
      throw AttentionError(
        .shapeMismatch,
        "logSumExp has shape \(view.shape), but this attention gives \([queryHeadCount, tokens])"
      )
    }
    return AttentionOperands.Operand(view)
  }
}

/// What every operand's elements must be, whatever the call.
enum OperandCheck {
  static func requireElements(
    _ name: String,
    _ elementType: ElementType,
    stride: Int,
    dimension: Int
  ) throws(AttentionError) {
    guard elementType.isFloatingPointOperand else {
      throw AttentionError(
        .unsupportedElementType,
        "\(name) is \(elementType.rawValue); it must be float32, float16 or bfloat16"
      )
    }
    guard stride == 1 || dimension == 1 else {
      throw AttentionError(
        .invalidArgument,
        "\(name) has stride \(stride) in its last dimension; it must be 1"
      )
    }
  }
}
