internal import CAttentionKernels

/// What hides keys beyond the interval that a row sees, and what is added to logits.
extension CPUCacheCall {
  /// One pass over the parts of the mask that rows of the call have: the check of every element, and
  /// which keys no row of a block sees.
  func surveyMask(_ team: ThreadTeam?) throws(AttentionError) {
    guard let mask = call.mask, let surveys else { return }
    ThreadPool.shared.run(itemCount: surveys.items.count, in: team) { index, _ in
      let item = surveys.items[index]
      let offset = mask.broadcastOffset(batch: 0, head: item.head, row: item.rows.lowerBound)
      var survey = unsafe intfa_mask_survey()
      unsafe survey.elements = UnsafeRawPointer(mask.base + offset * mask.elementType.bitWidth / 8)
      unsafe survey.row_stride = Int64(mask.strides[2])
      unsafe survey.key_stride = Int64(mask.shape[3] == 1 ? 0 : mask.strides[3])
      unsafe survey.element = mask.elementType.maskElement
      unsafe survey.rows = Int64(item.rows.count)
      unsafe survey.keys = Int64(item.keys)
      unsafe survey.shown = surveys.shown(index)
      unsafe intfa_survey_mask(&survey)
      unsafe surveys.firstBad[index] = survey.first_bad
    }
    for (index, item) in surveys.items.enumerated() where unsafe surveys.firstBad[index] >= 0 {
      let (row, key) = Int(unsafe surveys.firstBad[index]).quotientAndRemainder(
        dividingBy: item.keys
      )
      throw LogitOperands.error(
        mask,
        batch: 0,
        head: item.head,
        row: item.rows.lowerBound + row,
        key: min(key, mask.shape[3] - 1)
      )
    }
  }

  private var hasKeyMask: Bool {
    call.mask != nil || blockTable != nil || call.alibiSlopes != nil
  }

  /// Writes what the kernels are told of the rows of a block into the memory of its seat.
  func writeKeyMask(_ block: CPUCacheBlock, seat: Int) {
    guard hasKeyMask else { return }
    let result = unsafe workspace.place(workspace.keyMask, seat, as: intfa_key_mask.self)
    unsafe result.initialize(to: intfa_key_mask())
    let unit = Self.log2e * (block.isExact ? 1 : store.method.logitSteps)
    if let mask = call.mask {
      let elements = unsafe workspace.place(workspace.maskRows, seat, as: UnsafeRawPointer?.self)
      forEachRow(block) { row, head, token in
        let offset = mask.broadcastOffset(batch: 0, head: head, row: block.firstQuery + token)
        unsafe elements[row] = UnsafeRawPointer(
          mask.base + offset * mask.elementType.bitWidth / 8
        )
      }
      unsafe result.pointee.elements = UnsafePointer(elements)
      unsafe result.pointee.stride = Int64(mask.shape[3] == 1 ? 0 : mask.strides[3])
      unsafe result.pointee.element = mask.elementType.maskElement
      unsafe result.pointee.unit = unit
    }
    if let blockTable {
      let rows = unsafe workspace.place(workspace.blockRows, seat, as: UnsafePointer<UInt8>?.self)
      forEachRow(block) { row, _, token in
        unsafe rows[row] = blockTable.row(block.firstPosition + token)
      }
      unsafe result.pointee.blocks = UnsafePointer(rows)
      unsafe result.pointee.block_length = Int32(blockTable.keyBlockLength)
    }
    if let slopes = call.alibiSlopes {
      let rowSlopes = unsafe workspace.place(workspace.slopes, seat)
      let positions = unsafe workspace.place(workspace.positions, seat, as: Int32.self)
      forEachRow(block) { row, head, token in
        unsafe rowSlopes[row] = slopes[block.part * call.queryHeadCount + head] * unit
        unsafe positions[row] = Int32(block.firstPosition + token)
      }
      unsafe result.pointee.slopes = UnsafePointer(rowSlopes)
      unsafe result.pointee.positions = UnsafePointer(positions)
    }
  }

  /// What was written, for a kernel whose key 0 is the sequence's `first`; nil for nothing.
  func keyMask(from first: Int, seat: Int) -> UnsafePointer<intfa_key_mask>? {
    guard hasKeyMask else { return nil }
    let mask = unsafe workspace.place(workspace.keyMask, seat, as: intfa_key_mask.self)
    unsafe mask.pointee.first_key = Int64(first)
    return unsafe UnsafePointer(mask)
  }

  private func forEachRow(
    _ block: CPUCacheBlock,
    _ body: (_ row: Int, _ head: Int, _ token: Int) -> Void
  ) {
    var row = 0
    for token in block.tokens {
      for head in block.heads {
        body(row, head, token)
        row += 1
      }
    }
  }

  /// Those parts of `keys`, whole tiles from the beginning of one, of which a row of the block sees a
  /// key.
  func shownRanges(of keys: Range<Int>, _ block: CPUCacheBlock) -> [Range<Int>] {
    guard surveys != nil || blockTable != nil else { return [keys] }
    let positions =
      block.firstPosition + block.tokens.lowerBound..<block.firstPosition + block.tokens.upperBound
    var result: [Range<Int>] = []
    var begin = keys.lowerBound
    while begin < keys.upperBound {
      let length = begin == 0 ? recipe.firstTileLength : recipe.tileLength
      let tile = begin..<min(begin + length, keys.upperBound)
      begin = tile.upperBound
      guard blockTable?.shows(positions, tile) ?? true,
        surveys?.shows(tile, in: block.surveys) ?? true
      else { continue }
      if let last = result.last, last.upperBound == tile.lowerBound {
        result[result.count - 1] = last.lowerBound..<tile.upperBound
      } else {
        result.append(tile)
      }
    }
    return result
  }

  /// Adds the sinks of the block's heads: parts of the softmax that have no value.
  func addSinks(_ block: CPUCacheBlock, to sums: CPUCacheWorkspace.Sums, seat: Int) {
    guard let sinks = call.sinks else { return }
    let added = workspace.sums(seat: seat, 1)
    added.clear(rows: block.rows, start: 0)
    let isTiled = store.method.isTiled && !block.isExact
    // A cap sees the shift itself, so that its logits are already the unshifted ones.
    let isShifted = call.options.softcap == nil
    let shifts = unsafe workspace.place(workspace.rowShifts, seat)
    let unit = Self.log2e * (isTiled ? store.method.logitSteps : 1)
    forEachRow(block) { row, head, _ in
      let sink = sinks[block.part * call.queryHeadCount + head]
      guard sink > -.infinity else { return }
      unsafe added.total[row] = isTiled ? 255 : 1
      unsafe added.reference[row] = (sink - (isShifted ? shifts[row] : 0)) * unit
    }
    merge(block, into: sums, from: added)
  }
}

/// Surveys of a mask: for rows that blocks share, one byte per unit of keys, whether any row sees one
/// of them.
@safe
final class CPUMaskSurveys: @unchecked Sendable {
  // Sendable: the items of one stage write parts of their own, later stages read.

  /// Rows of one head of the mask, and how many keys they have.
  struct Item: Hashable {
    let head: Int
    let rows: Range<Int>
    let keys: Int
  }

  let items: [Item]
  /// For every item the number of the first element that no mask may have, or -1.
  let firstBad: UnsafeMutablePointer<Int64>
  private let bytes: UnsafeMutablePointer<UInt8>
  private let unitCount: Int

  /// Finds what is to be surveyed, and tells each block which surveys are its own.
  init(_ mask: AttentionOperands.Operand, _ blocks: inout [CPUCacheBlock]) {
    var items: [Item] = []
    var places: [Item: Int] = [:]
    for index in blocks.indices {
      let block = blocks[index]
      let heads = mask.shape[1] == 1 ? 0..<1 : block.heads
      let rows =
        mask.shape[2] == 1
        ? 0..<1
        : block.firstQuery + block.tokens.lowerBound..<block.firstQuery + block.tokens.upperBound
      // Blocks have all heads of a group or the same parts of it.
      let first = Item(head: heads.lowerBound, rows: rows, keys: block.count)
      let place = places[first] ?? items.count
      if place == items.count {
        places[first] = place
        for head in heads { items.append(Item(head: head, rows: rows, keys: block.count)) }
      }
      blocks[index].surveys = place..<place + heads.count
    }
    self.items = items
    let most = blocks.map(\.count).max() ?? 0
    unitCount = CPUTileSizes.pieceCount(most, KVCacheLayout.unitLength)
    unsafe bytes = .allocate(capacity: max(items.count * unitCount, 1))
    unsafe firstBad = .allocate(capacity: max(items.count, 1))
  }

  deinit {
    unsafe bytes.deallocate()
    unsafe firstBad.deallocate()
  }

  func shown(_ item: Int) -> UnsafeMutablePointer<UInt8> { unsafe bytes + item * unitCount }

  /// Whether one of the rows of some surveys sees one of the keys.
  func shows(_ keys: Range<Int>, in surveys: Range<Int>) -> Bool {
    let length = KVCacheLayout.unitLength
    let units = keys.lowerBound / length...(keys.upperBound - 1) / length
    return surveys.contains { item in units.contains { unsafe shown(item)[$0] != 0 } }
  }
}

/// Visible blocks of the positions that have queries, as one byte each.
///
/// Both count from the first token of a sequence, so that a row sees the same in whatever chunk it
/// comes.
@safe
final class CPUCacheBlockTable: @unchecked Sendable {
  // Sendable: written once, before anything else sees it.
  private let bytes: UnsafeMutablePointer<UInt8>
  private let blocks: VisibleBlocks
  private let columnCount: Int
  /// Where the bytes of a query block begin.
  private let places: [Int: Int]
  var keyBlockLength: Int { blocks.keyBlockLength }

  init(_ blocks: VisibleBlocks, _ rows: [CPUCacheBlock]) {
    self.blocks = blocks
    columnCount = blocks.keyBlockCount(keyValueLength: rows.map(\.count).max() ?? 0)
    var places: [Int: Int] = [:]
    for row in rows {
      let first = (row.firstPosition + row.tokens.lowerBound) / blocks.queryBlockLength
      let last = (row.firstPosition + row.tokens.upperBound - 1) / blocks.queryBlockLength
      for block in first...last where places[block] == nil {
        places[block] = places.count * columnCount
      }
    }
    self.places = places
    let count = max(places.count * columnCount, 1)
    unsafe bytes = .allocate(capacity: count)
    unsafe bytes.initialize(repeating: 0, count: count)
    for (block, place) in places {
      for column in blocks.visible[block] where column < columnCount {
        unsafe bytes[place + column] = 1
      }
    }
  }

  deinit {
    unsafe bytes.deallocate()
  }

  /// The bytes of the query at a position.
  func row(_ position: Int) -> UnsafePointer<UInt8> {
    unsafe UnsafePointer(bytes + (places[position / blocks.queryBlockLength] ?? 0))
  }

  /// Whether one of the queries sees one of the keys.
  func shows(_ positions: Range<Int>, _ keys: Range<Int>) -> Bool {
    let length = blocks.queryBlockLength
    let columns = keys.lowerBound / keyBlockLength...(keys.upperBound - 1) / keyBlockLength
    return (positions.lowerBound / length...(positions.upperBound - 1) / length).contains { block in
      let bytes = unsafe row(block * length)
      return columns.contains { unsafe bytes[$0] != 0 }
    }
  }
}
