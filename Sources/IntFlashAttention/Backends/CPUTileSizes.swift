/// How a call is cut into pieces on a CPU: a pure function of the shape.
///
/// None of it changes a bit of the result. What does, the tile and span lengths, belongs to the
/// recipe.
package struct CPUTileSizes: Hashable, Sendable {
  /// Threads that are worth using, of those that may be used.
  package let threadCount: Int
  /// Query rows that share one pass over the keys.
  ///
  /// A tile of keys and values is read once per block, and 16-bit floats are unpacked once: 256 rows
  /// hide that, while their float32 sums stay in the second-level cache. Fewer rows where there are
  /// not enough blocks for the threads.
  package let queryBlockLength: Int
  /// Rows that one item of the first pass takes: a multiple of `HeadRows.sumBlock`.
  package let surveyLength: Int
  /// Keys or values that one item quantises and packs: a multiple of `packUnit`.
  package let packLength: Int

  /// Rows that kernels take in one call.
  package static let largestQueryBlock = 256
  /// Rows that are packed together: whole groups of 4-bit tokens, too.
  package static let packUnit = 64
  /// Rows that an item of the pre-pass takes at most.
  private static let largestPiece = 1024

  /// Cuts a call.
  ///
  /// - Parameters:
  ///   - shape: the counts and sizes of the call.
  ///   - operationCount: operations of its two products, `AttentionDescriptor.operationCount`.
  ///   - threadCount: threads that it may use.
  package init(shape: AttentionShape, operationCount: Double, threadCount: Int) {
    let threads = Self.usefulThreadCount(
      shape: shape,
      operationCount: operationCount,
      available: threadCount
    )
    let queryHeads = max(shape.batchCount * shape.queryHeadCount, 1)
    let keyHeads = max(shape.batchCount * shape.keyValueHeadCount, 1)
    self.threadCount = threads
    queryBlockLength = Self.length(
      ofPieces: shape.queryLength,
      heads: queryHeads,
      threads: threads,
      unit: 16,
      largest: Self.largestQueryBlock
    )
    surveyLength = Self.length(
      ofPieces: max(shape.queryLength, shape.keyValueLength),
      heads: queryHeads + 2 * keyHeads,
      threads: threads,
      unit: HeadRows.sumBlock,
      largest: Self.largestPiece
    )
    packLength = Self.length(
      ofPieces: shape.keyValueLength,
      heads: 2 * keyHeads,
      threads: threads,
      unit: Self.packUnit,
      largest: Self.largestPiece
    )
  }

  /// Threads that make a call shorter: at least one, at most `available`.
  ///
  /// Threads meet after each of four stages and read what others wrote: between cores far apart that
  /// takes ten microseconds in all, more where helpers sleep. So each thread must have 20 microseconds
  /// of work, and a small call stays on the caller's thread. The time is that of `int8` with AVX-512,
  /// 10⁻¹² s per operation, and for the pre-pass as much per element as for 500 operations; slower
  /// kernels only have more work a thread.
  package static func usefulThreadCount(
    shape: AttentionShape,
    operationCount: Double,
    available: Int
  ) -> Int {
    let queries = shape.queryHeadCount * shape.queryLength * shape.headDimension
    let keys =
      shape.keyValueHeadCount * shape.keyValueLength * (shape.headDimension + shape.valueDimension)
    let work = operationCount + 500 * Double(shape.batchCount * (queries + keys))
    return max(Int(min(work / 2e7, Double(available))), 1)
  }

  /// The length of pieces of `rows` rows of each head, in whole units, that lets the threads finish at
  /// the same time.
  private static func length(
    ofPieces rows: Int,
    heads: Int,
    threads: Int,
    unit: Int,
    largest: Int
  ) -> Int {
    guard threads > 1 else { return min(max(padded(rows, to: unit), unit), largest) }
    // Four items a thread, where there are as many, make up for a thread that is held up.
    let fewest = min(4 * threads, heads * pieceCount(rows, unit))
    var best = (length: unit, slowest: Int.max)
    for length in stride(from: largest, through: unit, by: -unit) {
      let items = heads * pieceCount(rows, length)
      guard items >= fewest else { continue }
      // Starting an item takes as long as a row or two.
      let slowest = pieceCount(items, threads) * (length + 2)
      if slowest < best.slowest { best = (length, slowest) }
    }
    return best.length
  }

  /// The rows of block `index` of the queries; block 0 has the last rows.
  ///
  /// Under a causal mask later rows see more keys, and the block with the fewest rows is the one of
  /// the first rows: in this order the longest block comes first.
  package func queryRows(ofBlock index: Int, queryLength: Int) -> Range<Int> {
    let end = queryLength - index * queryBlockLength
    return max(end - queryBlockLength, 0)..<end
  }

  /// Pieces of `length` rows.
  package static func pieceCount(_ rows: Int, _ length: Int) -> Int { (rows + length - 1) / length }

  /// The next whole number of units.
  package static func padded(_ count: Int, to unit: Int) -> Int { pieceCount(count, unit) * unit }
}
