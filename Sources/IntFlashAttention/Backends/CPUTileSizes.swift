/// How a call is cut into pieces on a CPU: a pure function of the shape.
///
/// None of it changes a bit of the result. What does, the tile and span lengths, belongs to the
/// recipe.
package struct CPUTileSizes: Hashable, Sendable {
  /// Query rows that share one pass over the keys.
  ///
  /// A tile of keys and values is read once per block, and 16-bit floats are unpacked once: 256 rows
  /// hide that, while their float32 sums stay in the second-level cache. Fewer rows where there are
  /// not enough blocks for the threads.
  package let queryBlockLength: Int
  /// Rows that one piece of the pre-pass takes: a multiple of `HeadRows.sumBlock` and of the 32
  /// tokens of a 4-bit group.
  package let prepassLength = 1024

  /// Rows that kernels take in one call.
  package static let largestQueryBlock = 256

  package init(shape: AttentionShape, threadCount: Int) {
    let heads = max(shape.batchCount * shape.queryHeadCount, 1)
    // Four items a thread even out the last ones to finish.
    let wantedBlocks = threadCount == 1 ? 1 : Self.pieceCount(4 * threadCount, heads)
    let rows = Self.pieceCount(shape.queryLength, wantedBlocks)
    queryBlockLength = min(max(Self.padded(rows, to: 16), 16), Self.largestQueryBlock)
  }

  /// Pieces of `length` rows.
  package static func pieceCount(_ rows: Int, _ length: Int) -> Int { (rows + length - 1) / length }

  /// The next whole number of units.
  package static func padded(_ count: Int, to unit: Int) -> Int { pieceCount(count, unit) * unit }
}
