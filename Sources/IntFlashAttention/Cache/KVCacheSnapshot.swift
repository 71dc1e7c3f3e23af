/// The tokens of a ``KVCache`` as plain tensors, to be kept and put into a cache again.
///
/// What is stored is exact: attention over a cache that was restored has the bits that it had before,
/// also after more tokens. Tensors are in the order of tokens and channels, not in that of a kernel, so
/// a snapshot fits any instruction set and any page length. `TensorFiles` writes and reads it.
///
/// | tensor | shape | precisions |
/// |---|---|---|
/// | `first.key`, `first.value` | F32 [Hkv, m, D or Dv], the first m ≤ 64 tokens as they came | integers |
/// | `key.codes`, `value.codes` | I8 [Hkv, n, D or Dv] | those stored in 8 bits |
/// | `key.int4` | I8 [Hkv, c / 32, 18 · D]: [D][16] pairs of codes, [D] steps, [D] offsets | `int4`, `int4KeyValue` |
/// | `value.int4` | I8 [Hkv, c, ⌈Dv / 2⌉ + 2 ⌈Dv / 16⌉]: pairs, steps, offsets | `int4KeyValue` |
/// | `open.key`, `open.value` | I8 [Hkv, n − c, D or Dv], the unfinished tile in 8 bits | `int4`, `int4KeyValue` |
/// | `open.reopened` | F32 [1]: 64s of these tokens that come from 4 bits, after a truncation | `int4`, `int4KeyValue` |
/// | `key.scale`, `value.weight` | F32 [Hkv, n]: scales of keys, n of the values' scales unit / n | integers |
/// | `outlier` | I8 [Hkv, tiles]: the first outlier of a tile, or −1 | integers |
/// | `largest` | F32 [1]: the largest magnitude among all keys that came | all |
/// | `key`, `value` | F32 or BF16 [Hkv, n, D or Dv] | `float32`, `bfloat16` |
///
/// n is the number of tokens, none while they are fewer than 64; c of them are in whole tiles.
public struct KVCacheSnapshot: Sendable {
  /// The version of the tensors above and of the recipes that they belong to.
  ///
  /// It changes when what is stored would be attended to in another way.
  public static let version = 1

  /// How tokens are stored.
  public let precision: Precision
  /// Hkv.
  public let keyValueHeadCount: Int
  /// D.
  public let headDimension: Int
  /// Dv.
  public let valueDimension: Int
  /// Tokens.
  public let count: Int
  /// Position of the first token, for rotary embeddings.
  public let firstPosition: Int

  private let parts: [String: Part]

  /// A tensor of a snapshot.
  package final class Part: Sendable {
    package let tensor: Tensor

    package init(_ tensor: consuming Tensor) { self.tensor = tensor }

    package func withView(_ body: (TensorView) -> Void) {
      body(
        unsafe TensorView(
          unsafeBase: UnsafeRawPointer(tensor.storage),
          elementType: tensor.elementType,
          shape: tensor.shape,
          strides: tensor.strides
        )
      )
    }
  }

  /// The names of the tensors, sorted.
  package var names: [String] { parts.keys.sorted() }

  /// The tensor of this name; one that a valid snapshot of the precision has.
  package func part(_ name: Name) -> Part? { parts[name.rawValue] }

  package func part(named name: String) -> Part? { parts[name] }

  /// Names of tensors.
  package enum Name: String, CaseIterable {
    case firstKey = "first.key"
    case firstValue = "first.value"
    case keyCodes = "key.codes"
    case valueCodes = "value.codes"
    case keyInt4 = "key.int4"
    case valueInt4 = "value.int4"
    case openKey = "open.key"
    case openValue = "open.value"
    case reopened = "open.reopened"
    case keyScale = "key.scale"
    case valueWeight = "value.weight"
    case outlier, largest, key, value
  }

  /// Takes tensors after checking every one: names, types, shapes and values.
  ///
  /// - Throws: `AttentionError` with code `.invalidArgument`, `.unsupported` or `.shapeMismatch`.
  package init(
    precision: Precision,
    keyValueHeadCount: Int,
    headDimension: Int,
    valueDimension: Int,
    count: Int,
    firstPosition: Int,
    parts: [String: Part]
  ) throws(AttentionError) {
    guard let recipe = precision.streamingRecipe else {
      throw AttentionError(
        .unsupported,
        "precision \(precision.rawValue) has no key/value cache"
      )
    }
    guard count >= 0, count <= AttentionShape.largestLength else {
      throw AttentionError(
        .invalidArgument,
        "count is \(count); it must be between 0 and \(AttentionShape.largestLength)"
      )
    }
    _ = try AttentionShape(
      queryHeadCount: keyValueHeadCount,
      keyValueHeadCount: keyValueHeadCount,
      queryLength: 1,
      keyValueLength: count,
      headDimension: headDimension,
      valueDimension: valueDimension
    )
    self.precision = precision
    self.keyValueHeadCount = keyValueHeadCount
    self.headDimension = headDimension
    self.valueDimension = valueDimension
    self.count = count
    self.firstPosition = firstPosition
    self.parts = parts
    try KVCacheSnapshotCheck(self, recipe).run()
  }
}

extension KVCache {
  /// The tokens as plain tensors: a copy, exact.
  ///
  /// - Throws: `AttentionError` with code `.outOfMemory`, or `.unsupported` where the backend of the
  ///   pool cannot tell.
  public func snapshot() throws(AttentionError) -> KVCacheSnapshot {
    let part = part(queries: 0..<0)
    return try KVCacheSnapshot(
      precision: pool.precision,
      keyValueHeadCount: pool.keyValueHeadCount,
      headDimension: pool.headDimension,
      valueDimension: pool.valueDimension,
      count: count,
      firstPosition: firstPosition,
      parts: try part.sequence.parts(count: count, units: part.units)
    )
  }

  /// A sequence with the tokens of a snapshot.
  ///
  /// Attention over it, and over what is appended to it, has the bits of the cache that the snapshot
  /// is of.
  ///
  /// - Parameters:
  ///   - pool: where its pages come from; of the snapshot's precision and sizes, with any page length
  ///     and instruction set.
  ///   - snapshot: the tokens.
  /// - Throws: `AttentionError` with code `.shapeMismatch`, `.unsupported` where the backend cannot
  ///   restore, or `.outOfPages`; then the pool is as it was.
  public convenience init(
    in pool: KVCachePool,
    restoring snapshot: KVCacheSnapshot
  ) throws(AttentionError) {
    for (name, value, expected) in [
      ("precision", snapshot.precision.rawValue, pool.precision.rawValue),
      ("keyValueHeadCount", "\(snapshot.keyValueHeadCount)", "\(pool.keyValueHeadCount)"),
      ("headDimension", "\(snapshot.headDimension)", "\(pool.headDimension)"),
      ("valueDimension", "\(snapshot.valueDimension)", "\(pool.valueDimension)"),
    ] where value != expected {
      throw AttentionError(
        .shapeMismatch,
        "the snapshot has \(name) \(value), but the pool has \(expected)"
      )
    }
    self.init(in: pool)
    try restore(snapshot)
  }
}

extension KVCacheSequence {
  package func parts(
    count: Int,
    units: [Int32]
  ) throws(AttentionError) -> [String: KVCacheSnapshot.Part] {
    throw AttentionError(.unsupported, "this backend takes no snapshots of caches")
  }

  package func restore(_ snapshot: KVCacheSnapshot, units: [Int32]) {}

  package var restores: Bool { false }
}
