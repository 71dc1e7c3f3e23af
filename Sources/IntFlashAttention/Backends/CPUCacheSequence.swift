internal import CAttentionKernels

/// What a sequence has beside its units: the first tile as it came, statistics from it, outliers, and
/// the open tile of 4-bit recipes.
@safe
final class CPUCacheSequence: KVCacheSequence {
  let store: CPUCacheStore
  private(set) var first: CPUFirstTile
  private(set) var open: CPUOpenTile?
  /// Per head, in order: the first token of each tile whose value is far larger than the mean.
  private(set) var outliers: [[Int]]
  /// Bound of the magnitude of every key.
  private(set) var largestKey: Float = 0
  private var largestNewKey: Float = 0

  init(_ store: CPUCacheStore) {
    self.store = store
    first = CPUFirstTile(store.layout)
    outliers = [[Int]](repeating: [], count: store.layout.keyValueHeadCount)
  }

  private init(forkOf other: CPUCacheSequence) {
    store = other.store
    first = other.first
    open = other.open
    outliers = other.outliers
    largestKey = other.largestKey
  }

  func fork() -> any KVCacheSequence { CPUCacheSequence(forkOf: self) }

  var recipe: QuantizationRecipe { store.layout.recipe }

  // MARK: Append

  func check(_ tokens: KVCacheTokens) throws(AttentionError) {
    let key = unsafe try CPUSurvey.largest(of: tokens.key, .key, recipe.key, store.kernels)
    _ = unsafe try CPUSurvey.largest(of: tokens.value, .value, recipe.value, store.kernels)
    largestNewKey = key
  }

  func append(_ tokens: KVCacheTokens, count: Int, units: [Int32]) {
    largestKey = max(largestKey, largestNewKey)
    let end = count + tokens.count
    guard store.method.isTiled else {
      appendFloats(tokens, firstPosition: count, count..<end, units)
      return
    }
    var begin = count
    if begin < CPUFirstTile.length {
      own(&first)
      let stop = min(end, CPUFirstTile.length)
      first.keep(tokens, begin..<stop)
      begin = stop
      if stop == CPUFirstTile.length {
        first.freeze(store)
        let kept = first.tokens
        write(kept, firstPosition: 0, 0..<stop, units)
      }
    }
    while begin < end {
      let stop = store.method.hasInt4Key ? openTile(for: begin..<end) : end
      write(tokens, firstPosition: count, begin..<stop, units)
      if let open, open.end == stop { self.open = nil }
      begin = stop
    }
  }

  /// How far positions from the first of `range` can be written together: whole tiles go to 4 bits at
  /// once, any other is opened.
  private func openTile(for range: Range<Int>) -> Int {
    let start = tileStart(range.lowerBound)
    let end = tileEnd(start)
    if range.lowerBound == start, end <= range.upperBound {
      let last = tileStart(range.upperBound)
      return last > start ? last : end
    }
    if open == nil { open = CPUOpenTile(store, start: start, end: end) }
    if !isKnownUniquelyReferenced(&open), let shared = open { open = shared.copy() }
    return min(end, range.upperBound)
  }

  private func own(_ tile: inout CPUFirstTile) {
    if !isKnownUniquelyReferenced(&tile) { tile = tile.copy() }
  }

  /// Quantises positions `range`, tile by tile; `firstPosition` is that of the first of `tokens`.
  private func write(
    _ tokens: KVCacheTokens,
    firstPosition: Int,
    _ range: Range<Int>,
    _ units: [Int32]
  ) {
    let heads = store.layout.keyValueHeadCount
    let starts = tileStarts(range)
    let elements = range.count * heads * (store.layout.headDimension + store.layout.valueDimension)
    let threads = min(max(elements / 100_000, 1), store.threadCount)
    let staging = CPUCacheStaging(store.layout, seats: threads)
    var found = [Int](repeating: -1, count: heads * starts.count)
    unsafe found.withUnsafeMutableBufferPointer { found in
      nonisolated(unsafe) let found = unsafe found
      ThreadPool.shared.run(itemCount: heads * starts.count, threads: threads) { item, seat in
        let (head, index) = item.quotientAndRemainder(dividingBy: starts.count)
        let tile = starts[index]..<tileEnd(starts[index])
        let part = range.clamped(to: tile)
        let writer = CPUTileWriter(
          store: store,
          first: first,
          open: open?.start == tile.lowerBound ? open : nil,
          staging: staging,
          seat: seat,
          head: head,
          tile: tile,
          units: units,
          isFlagged: outliers[head].last.map { $0 >= tile.lowerBound } ?? false
        )
        unsafe found[item] = writer.write(
          part,
          key: CPUSurvey.rows(tokens.key, head: head, from: part.lowerBound - firstPosition),
          value: CPUSurvey.rows(tokens.value, head: head, from: part.lowerBound - firstPosition)
        )
      }
    }
    for head in 0..<heads {
      for (index, start) in starts.enumerated() {
        let position = found[head * starts.count + index]
        guard position >= 0, (outliers[head].last ?? -1) < start else { continue }
        outliers[head].append(position)
      }
    }
  }

  private func tileStart(_ position: Int) -> Int {
    recipe.tileStart(of: position, tileLength: recipe.tileLength)
  }

  private func tileEnd(_ start: Int) -> Int {
    start + (start == 0 ? recipe.firstTileLength : recipe.tileLength)
  }

  private func tileStarts(_ range: Range<Int>) -> [Int] {
    var starts: [Int] = []
    var start = tileStart(range.lowerBound)
    while start < range.upperBound {
      starts.append(start)
      start = tileEnd(start)
    }
    return starts
  }

  // MARK: Truncate

  func truncate(to count: Int, units: [Int32]) {
    // Below the first tile they are found anew, with its statistics.
    let known = count < CPUFirstTile.length ? 0 : count
    for head in outliers.indices { outliers[head].removeAll { $0 >= known } }
    if count < CPUFirstTile.length, first.isFrozen {
      own(&first)
      first.isFrozen = false
    }
    guard store.method.hasInt4Key else { return }
    let start = tileStart(count)
    guard count > start, count >= CPUFirstTile.length else {
      open = nil
      return
    }
    guard open?.start != start else { return }
    let tile = CPUOpenTile(store, start: start, end: tileEnd(start))
    tile.reopen(store, units, count: count)
    open = tile
  }
}
