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

  /// Takes what a snapshot has beside units.
  func replace(open: CPUOpenTile?, outliers: [[Int]], largestKey: Float) {
    self.open = open
    self.outliers = outliers
    self.largestKey = largestKey
  }

  func fork(count: Int, units: [Int32]) -> any KVCacheSequence {
    packWholeUnits(count, units)
    return CPUCacheSequence(forkOf: self)
  }

  /// Puts whole units of the open tile into 4 bits: once they are shared, nobody may write them.
  private func packWholeUnits(_ count: Int, _ units: [Int32]) {
    let whole = wholeUnits(count)
    guard whole > open?.packedUnits ?? whole, let open = ownOpenTile() else { return }
    let staging = CPUCacheStaging(store.layout, seats: 1, turnsKeys: false)
    for head in 0..<store.layout.keyValueHeadCount {
      unsafe open.pack(
        head,
        upTo: whole,
        units,
        keyRows: staging.place(staging.keyCodes, 0, as: Int8.self),
        valueRows: staging.place(staging.valueCodes, 0, as: Int8.self)
      )
    }
    open.packedUnits = whole
  }

  /// Units of the open tile that `count` tokens fill.
  private func wholeUnits(_ count: Int) -> Int {
    open.map { (count - $0.start) / KVCacheLayout.unitLength } ?? 0
  }

  /// The open tile, copied where forks have it too.
  private func ownOpenTile() -> CPUOpenTile? {
    if !isKnownUniquelyReferenced(&open) { open = open?.copy() }
    return open
  }

  var recipe: QuantizationRecipe { store.layout.recipe }

  // MARK: Append

  func check(_ tokens: KVCacheTokens) throws(AttentionError) {
    let key =
      if let rotary = tokens.rotary {
        unsafe try CPUSurvey.largest(
          of: tokens.key,
          0..<tokens.count,
          .key,
          recipe.key,
          store.kernels,
          rotary.embedding,
          position: rotary.firstPosition
        )
      } else {
        unsafe try CPUSurvey.largest(of: tokens.key, .key, recipe.key, store.kernels)
      }
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
      unsafe first.keep(tokens, begin..<stop, store.kernels)
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
    _ = ownOpenTile()
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
    let staging = CPUCacheStaging(
      store.layout,
      seats: threads,
      turnsKeys: tokens.rotary != nil
    )
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
        let from = part.lowerBound - firstPosition
        unsafe found[item] = writer.write(
          part,
          key: CPUSurvey.rows(tokens.key, head: head, from: from),
          value: CPUSurvey.rows(tokens.value, head: head, from: from),
          rotary: tokens.keyRotary(from: from)
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

  func tileStart(_ position: Int) -> Int {
    recipe.tileStart(of: position, tileLength: recipe.tileLength)
  }

  func tileEnd(_ start: Int) -> Int {
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
    // Below the first tile statistics are taken anew, and with them what is far larger.
    let kept = count < CPUFirstTile.length ? 0 : count
    for head in outliers.indices { outliers[head].removeAll { $0 >= kept } }
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
    guard open?.start == start else {
      let tile = CPUOpenTile(store, start: start, end: tileEnd(start))
      tile.reopen(units, count: count)
      open = tile
      return
    }
    let whole = wholeUnits(count)
    guard whole < open?.packedUnits ?? 0, let open = ownOpenTile() else { return }
    open.packedUnits = whole
    open.reopenedUnits = min(open.reopenedUnits, whole)
  }
}
