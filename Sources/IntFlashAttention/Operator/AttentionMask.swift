/// Which keys a query sees.
///
/// Queries are aligned with keys at the end: the last query stands at the last key. Query row i
/// stands at key position i + Nk − Nq. Causal, with 3 queries:
/// ```
/// 5 keys       2 keys
/// 1 1 1 0 0    0 0     a row that sees no key gives zeros and log-sum-exp −∞
/// 1 1 1 1 0    1 0
/// 1 1 1 1 1    1 1
/// ```
/// <doc:Masks> draws them all, and what can be combined with them: ``VisibleBlocks`` in
/// ``AttentionOptions/blocks``, and tensors that a call adds to the logits.
public enum AttentionMask: Hashable, Sendable {
  /// Every query sees every key.
  case full
  /// A query sees the keys up to and with its own position.
  case causal
  /// A query sees keys from `left` before its own position to `right` after it, both included.
  ///
  /// nil is unlimited: `.sliding(left: nil, right: 0)` is `.causal`. Neither may be negative.
  case sliding(left: Int?, right: Int?)
  /// As `causal`, and every query sees the first `prefix` keys, which so see each other.
  ///
  /// A prefix longer than the keys is all of them. Not negative.
  case prefixCausal(prefix: Int)

  /// The positions that row 0 sees and by how much both ends move from row to row.
  ///
  /// Row r sees keys in `first + r · step ..< max(end + r · step, leastEnd)`, clipped to
  /// `0..<keyValueLength`. This is the only place where the alignment is computed.
  package func visibility(queryLength: Int, keyValueLength: Int) -> (
    first: Int, end: Int, step: Int, leastEnd: Int
  ) {
    let position = keyValueLength - queryLength
    // Far enough to see everything from any row, near enough that no sum overflows.
    let unlimited = keyValueLength + queryLength
    switch self {
    case .full: return (0, keyValueLength, 0, 0)
    case .causal: return (position - unlimited, position + 1, 1, 0)
    case .prefixCausal(let prefix):
      return (position - unlimited, position + 1, 1, min(prefix, keyValueLength))
    case .sliding(let left, let right):
      let before = min(left ?? unlimited, unlimited)
      let after = min(right ?? unlimited, unlimited)
      return (position - before, position + after + 1, 1, 0)
    }
  }

  /// The keys that query row `row` sees.
  package func visibleKeys(row: Int, queryLength: Int, keyValueLength: Int) -> Range<Int> {
    let seen = visibility(queryLength: queryLength, keyValueLength: keyValueLength)
    let begin = min(max(seen.first + row * seen.step, 0), keyValueLength)
    let end = min(max(seen.end + row * seen.step, seen.leastEnd, begin), keyValueLength)
    return begin..<end
  }

  package func validate() throws(AttentionError) {
    if case .prefixCausal(let prefix) = self, prefix < 0 {
      throw AttentionError(.invalidArgument, "mask: prefix is \(prefix); it must be at least 0")
    }
    guard case .sliding(let left, let right) = self else { return }
    for (name, value) in [("left", left), ("right", right)] {
      if let value, value < 0 {
        throw AttentionError(
          .invalidArgument,
          "mask: window \(name) is \(value); it must be at least 0, or nil for unlimited"
        )
      }
    }
  }
}
