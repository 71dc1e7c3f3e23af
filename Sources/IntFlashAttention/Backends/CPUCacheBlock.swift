internal import CAttentionKernels

/// Query rows of one sequence and one key/value head that are computed together: the tokens, and for
/// each the query heads that read the head.
struct CPUCacheBlock {
  let sequence: CPUCacheSequence
  /// Number of the sequence in the call.
  let part: Int
  let units: [Int32]
  /// Tokens in the cache.
  let count: Int
  /// Key/value head.
  let head: Int
  /// Query heads.
  let heads: Range<Int>
  /// Query of the sequence's token 0 in the call's tensors.
  let firstQuery: Int
  /// Position of that query in the sequence.
  let firstPosition: Int
  /// Position of that query for rotary embeddings.
  let rotaryPosition: Int
  /// Query tokens of the sequence.
  let tokens: Range<Int>
  /// Whether the rows see tokens of the first tile only, which are there as they came.
  let isExact: Bool
  let visible: intfa_visible
  /// Keys that some row sees.
  let seen: Range<Int>
  /// Keys before this are seen by all rows, as far as the mask's end is concerned.
  let firstEnd: Int
  /// Spans that are items of their own; nil where the block is one item.
  var spans: Range<Int>?
  var firstPartial = 0
  /// Where the mask of the call hides whole units: its surveys of the block's heads.
  var surveys = 0..<0

  var rows: Int { tokens.count * heads.count }
  /// Operations, or what reading takes of their time.
  let work: Double

  /// Blocks with more rows keep their spans together: there is work enough.
  static let mostSplitRows = 16
  private static let mostRows = CPUTileSizes.largestQueryBlock
  /// Query heads of a group that stand side by side at most.
  private static let mostHeads = 64

  static func blocks(of call: KVCacheCall, in store: CPUCacheStore) -> [CPUCacheBlock] {
    let groupSize = call.queryHeadCount / store.layout.keyValueHeadCount
    let headCount = CPUTileSizes.pieceCount(groupSize, mostHeads)
    let headLength = CPUTileSizes.pieceCount(groupSize, headCount)
    var blocks: [CPUCacheBlock] = []
    var partialCount = 0
    for (index, part) in call.parts.enumerated() where !part.queries.isEmpty {
      guard let sequence = part.sequence as? CPUCacheSequence else { continue }
      for head in 0..<store.layout.keyValueHeadCount {
        for start in stride(from: 0, to: groupSize, by: headLength) {
          let first = head * groupSize + start
          let heads = first..<first + min(headLength, groupSize - start)
          let cuts = cuts(part, sequence, head, mostRows / heads.count, call, store)
          for (begin, end) in zip(cuts, cuts.dropFirst()) {
            var block = CPUCacheBlock(part, index, sequence, head, heads, begin..<end, call, store)
            if block.rows <= mostSplitRows, !block.isExact {
              let spans = block.spanIndices(store.layout.recipe)
              if spans.count > 1 {
                block.spans = spans
                block.firstPartial = partialCount
                partialCount += spans.count
              }
            }
            blocks.append(block)
          }
        }
      }
    }
    return blocks
  }

  /// Where the tokens of a sequence are cut: where rows are computed in another way than those before,
  /// and after `length` tokens.
  private static func cuts(
    _ part: KVCacheCall.Part,
    _ sequence: CPUCacheSequence,
    _ head: Int,
    _ length: Int,
    _ call: KVCacheCall,
    _ store: CPUCacheStore
  ) -> [Int] {
    let tokens = part.queries.count
    let seen = call.options.mask.visibility(queryLength: tokens, keyValueLength: part.count)
    var cuts: Set<Int> = [0, tokens]
    if seen.step > 0 {
      // Token t sees keys before seen.end + t, or more where there is a prefix.
      if store.method.isTiled { cuts.insert(CPUFirstTile.length - seen.end + 1) }
      for position in sequence.outliers[head] { cuts.insert(position + 1 - seen.end) }
    }
    let sorted = cuts.filter { (0...tokens).contains($0) }.sorted()
    var result = [0]
    for cut in sorted.dropFirst() {
      var last = result[result.count - 1]
      while cut - last > length {
        last += length
        result.append(last)
      }
      result.append(cut)
    }
    return result
  }

  private init(
    _ part: KVCacheCall.Part,
    _ index: Int,
    _ sequence: CPUCacheSequence,
    _ head: Int,
    _ heads: Range<Int>,
    _ tokens: Range<Int>,
    _ call: KVCacheCall,
    _ store: CPUCacheStore
  ) {
    self.sequence = sequence
    self.part = index
    units = part.units
    count = part.count
    self.head = head
    self.heads = heads
    firstQuery = part.queries.lowerBound
    firstPosition = part.count - part.queries.count
    rotaryPosition = part.firstPosition
    self.tokens = tokens
    let mask = call.options.mask
      .visibility(queryLength: part.queries.count, keyValueLength: part.count)
    let (first, end) = (
      mask.first + tokens.lowerBound * mask.step, mask.end + tokens.lowerBound * mask.step
    )
    visible = intfa_visible(
      first: Int64(first),
      end: Int64(end),
      step: Int64(mask.step),
      least_end: Int64(mask.leastEnd),
      rows_per_step: Int32(heads.count)
    )
    let lastEnd = min(max(end + (tokens.count - 1) * mask.step, mask.leastEnd), part.count)
    let begin = min(max(first, 0), lastEnd)
    seen = begin..<lastEnd
    firstEnd = min(max(end, mask.leastEnd), part.count)
    isExact = store.method.isTiled && lastEnd <= CPUFirstTile.length
    let keys = Double(lastEnd - begin)
    let dimensions = Double(store.layout.headDimension + store.layout.valueDimension)
    // Few rows wait for memory: a byte takes as long as 50 operations.
    work = keys * max(2 * dimensions * Double(tokens.count * heads.count), 50 * store.bytesPerToken)
  }

  /// The spans that hold keys which some row sees.
  func spanIndices(_ recipe: QuantizationRecipe) -> Range<Int> {
    var (first, index) = (-1, 0)
    while let span = recipe.span(index, keyValueLength: seen.upperBound) {
      if first < 0, span.upperBound > seen.lowerBound { first = index }
      index += 1
    }
    return first < 0 ? 0..<0 : first..<index
  }
}
