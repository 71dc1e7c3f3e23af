/// What decides how tokens are stored in a cache.
package struct KVCacheLayout: Hashable, Sendable {
  package let keyValueHeadCount: Int
  package let headDimension: Int
  package let valueDimension: Int
  /// The recipe in its streaming form.
  package let recipe: QuantizationRecipe
  /// Tokens that there is room for: whole pages.
  package let capacity: Int

  /// Tokens that are stored together; every kernel's unit.
  package static let unitLength = 64

  package var unitCount: Int { capacity / Self.unitLength }
}

/// A backend that keeps quantised tokens and attends to them.
package protocol CachingBackend: AttentionBackend {
  func makeCacheStore(for layout: KVCacheLayout) throws(AttentionError) -> any KVCacheStore
}

/// The memory of a pool, unit by unit, as one backend has it.
package protocol KVCacheStore: AnyObject, Sendable {
  /// Bytes that one token takes in one key/value head.
  var bytesPerToken: Double { get }
  var backendName: String { get }
  var instructionSet: String { get }
  var threadCount: Int { get }
  /// Whether rows are turned while they are read; else the caller turns them beforehand.
  var appliesRotary: Bool { get }
  /// A sequence without tokens.
  func makeSequence() -> any KVCacheSequence
  /// Copies whole units within the pool.
  func copyUnit(from source: Int32, to target: Int32)
  /// Computes attention of every sequence's queries; the caller has checked shapes and types.
  func attend(_ call: KVCacheCall) throws(AttentionError)
}

extension KVCacheStore {
  package var appliesRotary: Bool { false }
}

/// What a backend knows of one sequence beside its units.
package protocol KVCacheSequence: AnyObject {
  /// Checks new tokens; changes nothing.
  func check(_ tokens: KVCacheTokens) throws(AttentionError)
  /// Stores new tokens, which have been checked, after the first `count`.
  func append(_ tokens: KVCacheTokens, count: Int, units: [Int32])
  /// Forgets all but the first `count` tokens.
  func truncate(to count: Int, units: [Int32])
  /// An independent sequence with the same `count` tokens, in the same units.
  func fork(count: Int, units: [Int32]) -> any KVCacheSequence
  /// The tensors of a snapshot of the first `count` tokens, which are all there are.
  func parts(count: Int, units: [Int32]) throws(AttentionError) -> [String: KVCacheSnapshot.Part]
  /// Whether `restore` does something.
  var restores: Bool { get }
  /// Takes the tokens of a snapshot, which has been checked, into a sequence without tokens.
  func restore(_ snapshot: KVCacheSnapshot, units: [Int32])
}

/// New keys and values of one sequence: [1, Hkv, n, D] and [1, Hkv, n, Dv].
package struct KVCacheTokens: @unchecked Sendable {
  // Sendable: it is only read.
  package let key: AttentionOperands.Operand
  package let value: AttentionOperands.Operand
  /// What turns the keys, of which the first stands at this position; nil where nothing does.
  package var rotary: (embedding: RotaryEmbedding, firstPosition: Int)?

  package var count: Int { key.shape[2] }
}

/// Queries of several sequences side by side, and where their tokens are.
package struct KVCacheCall {
  package struct Part {
    /// Tokens of `query` that belong to the sequence.
    package let queries: Range<Int>
    package let sequence: any KVCacheSequence
    package let count: Int
    package let units: [Int32]
    /// Position of the first of the queries, for rotary embeddings.
    package let firstPosition: Int
  }

  /// [1, Hq, T, D].
  package var query: AttentionOperands.Operand
  /// [1, Hq, T, Dv].
  package let output: AttentionOperands.Operand
  /// [1, Hq, T].
  package var logSumExp: AttentionOperands.Operand?
  /// [1, Hq or 1, T or 1, L or 1], where L is at least the tokens of any sequence with queries.
  package var mask: AttentionOperands.Operand?
  /// [part][Hq].
  package var alibiSlopes: [Float]?
  /// [part][Hq].
  package var sinks: [Float]?
  package let queryHeadCount: Int
  package let softmaxScale: Float
  package let options: AttentionOptions
  package let parts: [Part]
  /// What turns the queries; nil where nothing does.
  package let rotary: RotaryEmbedding?
}
