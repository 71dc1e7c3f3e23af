/// Block-sparse attention: which blocks of queries see which blocks of keys.
///
/// Query row i belongs to query block i / `queryBlockLength`, key j to key block j / `keyBlockLength`,
/// both counted from the first token; last blocks may be short. All heads share the blocks; a mask
/// tensor can differ by head. What no query of a tile sees is not computed.
///
/// With blocks of two and ``visible`` `[[0], [0, 2]]`:
/// ```
/// 1 1 0 0 0
/// 1 1 0 0 0
/// 1 1 0 0 1
/// ```
public struct VisibleBlocks: Hashable, Sendable {
  /// Query rows of a block, at least 1.
  public let queryBlockLength: Int
  /// Keys of a block, at least 1; fastest in multiples of 64.
  public let keyBlockLength: Int
  /// For every query block the key blocks that it sees, ascending.
  public let visible: [[Int]]

  /// Stores blocks; they are compared with a shape when a plan is made.
  ///
  /// - Parameters:
  ///   - queryBlockLength: query rows of a block.
  ///   - keyBlockLength: keys of a block.
  ///   - visible: for every query block the key blocks that it sees, in any order.
  /// - Throws: `AttentionError` with code `.invalidArgument` for a length below 1, a block that no
  ///   sequence has or one that is named twice.
  public init(
    queryBlockLength: Int,
    keyBlockLength: Int,
    visible: [[Int]]
  ) throws(AttentionError) {
    for (name, length) in [
      ("queryBlockLength", queryBlockLength), ("keyBlockLength", keyBlockLength),
    ] where !(1...Int(Int32.max)).contains(length) {
      throw AttentionError(
        .invalidArgument,
        "blocks: \(name) is \(length); it must be between 1 and \(Int32.max)"
      )
    }
    let sorted = visible.map { $0.sorted() }
    let largest = AttentionShape.largestLength / keyBlockLength
    for (row, blocks) in sorted.enumerated() {
      for block in [blocks.first, blocks.last].compactMap(\.self)
      where !(0...largest).contains(block) {
        throw AttentionError(
          .invalidArgument,
          "blocks: query block \(row) sees key block \(block); it must be between 0 and \(largest)"
        )
      }
      for (a, b) in zip(blocks, blocks.dropFirst()) where a == b {
        throw AttentionError(
          .invalidArgument,
          "blocks: query block \(row) names key block \(a) twice"
        )
      }
    }
    self.queryBlockLength = queryBlockLength
    self.keyBlockLength = keyBlockLength
    self.visible = sorted
  }

  /// Whether query row `row` sees key `key`, as far as blocks decide.
  package func shows(row: Int, key: Int) -> Bool {
    let (blocks, block) = (visible[row / queryBlockLength], key / keyBlockLength)
    var (low, high) = (0, blocks.count)
    while low < high {
      let middle = (low + high) / 2
      if blocks[middle] < block { low = middle + 1 } else { high = middle }
    }
    return low < blocks.count && blocks[low] == block
  }

  /// Keys of `keys` that query row `row` sees.
  package func visibleCount(row: Int, _ keys: Range<Int>) -> Int {
    visible[row / queryBlockLength].reduce(0) { count, block in
      count + keys.clamped(to: block * keyBlockLength..<(block + 1) * keyBlockLength).count
    }
  }

  /// Key blocks that `keyValueLength` keys have.
  package func keyBlockCount(keyValueLength: Int) -> Int {
    (keyValueLength + keyBlockLength - 1) / keyBlockLength
  }

  package func validate(_ shape: AttentionShape) throws(AttentionError) {
    let queryBlocks = (shape.queryLength + queryBlockLength - 1) / queryBlockLength
    guard visible.count == queryBlocks else {
      throw AttentionError(
        .shapeMismatch,
        "blocks: there are lists for \(visible.count) query blocks, but \(shape.queryLength) "
          + "queries are \(queryBlocks) blocks of \(queryBlockLength)"
      )
    }
    let keyBlocks = keyBlockCount(keyValueLength: shape.keyValueLength)
    for (row, blocks) in visible.enumerated() {
      if let last = blocks.last, last >= keyBlocks {
        throw AttentionError(
          .shapeMismatch,
          "blocks: query block \(row) sees key block \(last), but \(shape.keyValueLength) keys are "
            + "\(keyBlocks) blocks of \(keyBlockLength)"
        )
      }
    }
  }
}
