import CIntFlashAttention
import IntFlashAttention

/// Visible blocks of the caller, of which as much is read as a call needs.
@safe
struct CVisibleBlocks {
  private let blocks: intfa_visible_blocks
  /// The lengths, without lists: how much may be read follows from them.
  private let lengths: VisibleBlocks

  init(_ pointer: UnsafePointer<intfa_visible_blocks>?) throws(AttentionError) {
    unsafe blocks = unsafe try CStruct.read(pointer, "blocks", intfa_visible_blocks())
    lengths = unsafe try VisibleBlocks(
      queryBlockLength: Int(blocks.query_block_length),
      keyBlockLength: Int(blocks.key_block_length),
      visible: []
    )
  }

  /// A list for every query block of a shape, and for no other.
  func lists(for shape: AttentionShape) throws(AttentionError) -> VisibleBlocks {
    let length = lengths.queryBlockLength
    let rows = (shape.queryLength + length - 1) / length
    guard unsafe blocks.query_block_count == rows else {
      throw AttentionError(
        .shapeMismatch,
        "blocks: query_block_count is \(unsafe blocks.query_block_count), but \(shape.queryLength) "
          + "queries are \(rows) blocks of \(length)"
      )
    }
    return try lists([0..<rows], count: rows, keyValueLength: shape.keyValueLength)
  }

  /// The lists of the query blocks that have these positions; all others stay empty, since a
  /// sequence may be long and a call of one query needs one list.
  func lists(forPositions positions: [Range<Int>]) throws(AttentionError) -> VisibleBlocks {
    let length = lengths.queryBlockLength
    let needed = positions.filter { !$0.isEmpty }.map {
      $0.lowerBound / length..<($0.upperBound - 1) / length + 1
    }
    let count = needed.reduce(0) { max($0, $1.upperBound) }
    guard unsafe blocks.query_block_count >= count else {
      throw AttentionError(
        .shapeMismatch,
        "blocks: query_block_count is \(unsafe blocks.query_block_count), but the call has queries in "
          + "\(count) blocks of \(length)"
      )
    }
    return try lists(needed, count: count, keyValueLength: AttentionShape.largestLength)
  }

  /// `count` lists, those of `rows` as the caller has them.
  private func lists(
    _ rows: [Range<Int>],
    count: Int,
    keyValueLength: Int
  ) throws(AttentionError) -> VisibleBlocks {
    let offsets = unsafe try require(blocks.offsets, "blocks: offsets")
    let visible = unsafe try require(blocks.visible, "blocks: visible")
    guard unsafe offsets[0] == 0 else {
      throw AttentionError(
        .invalidArgument,
        "blocks: offsets begin with \(unsafe offsets[0]); it must be 0"
      )
    }
    let columns = lengths.keyBlockCount(keyValueLength: keyValueLength)
    for row in 0..<count {
      let (first, end) = unsafe (Int(offsets[row]), Int(offsets[row + 1]))
      let (length, overflow) = end.subtractingReportingOverflow(first)
      guard !overflow, length >= 0, length <= columns else {
        throw AttentionError(
          .invalidArgument,
          "blocks: offsets of query block \(row) are \(first) and \(end); it can see 0 to \(columns) "
            + "key blocks"
        )
      }
    }
    var lists = [[Int]](repeating: [], count: count)
    for row in rows.joined() where lists[row].isEmpty {
      lists[row] = unsafe (Int(offsets[row])..<Int(offsets[row + 1])).map {
        unsafe Int(visible[$0])
      }
    }
    return try VisibleBlocks(
      queryBlockLength: lengths.queryBlockLength,
      keyBlockLength: lengths.keyBlockLength,
      visible: lists
    )
  }
}
