internal import CAttentionKernels

/// What hides keys beyond the interval that a row sees, and what is added to logits.
extension CPUCall {
  /// One pass over the mask of the call: the check of every element, and which keys no row of a query
  /// block sees.
  func surveyMask() throws(AttentionError) {
    guard let mask = operands.mask, let units = maskUnits else { return }
    forEachItem(units.itemCount) { item, _ in
      let (head, block) = item.quotientAndRemainder(dividingBy: units.blockCount)
      let rows = surveyedRows(block, of: mask)
      let offset = mask.broadcastOffset(
        batch: head / mask.shape[1],
        head: head % mask.shape[1],
        row: rows.lowerBound
      )
      var survey = unsafe intfa_mask_survey()
      unsafe survey.elements = UnsafeRawPointer(mask.base + offset * mask.elementType.bitWidth / 8)
      unsafe survey.row_stride = Int64(mask.strides[2])
      unsafe survey.key_stride = Int64(mask.shape[3] == 1 ? 0 : mask.strides[3])
      unsafe survey.element = mask.elementType.maskElement
      unsafe survey.rows = Int64(rows.count)
      unsafe survey.keys = Int64(shape.keyValueLength)
      unsafe survey.shown = units.shown(item)
      unsafe intfa_survey_mask(&survey)
      unsafe units.firstBad[item] = survey.first_bad
    }
    for item in 0..<units.itemCount where unsafe units.firstBad[item] >= 0 {
      let (head, block) = item.quotientAndRemainder(dividingBy: units.blockCount)
      let (row, key) = Int(unsafe units.firstBad[item])
        .quotientAndRemainder(dividingBy: shape.keyValueLength)
      throw LogitOperands.error(
        mask,
        batch: head / mask.shape[1],
        head: head % mask.shape[1],
        row: surveyedRows(block, of: mask).lowerBound + row,
        key: min(key, mask.shape[3] - 1)
      )
    }
  }

  private func surveyedRows(_ block: Int, of mask: AttentionOperands.Operand) -> Range<Int> {
    guard mask.shape[2] > 1 else { return 0..<1 }
    return kernel.tileSizes.queryRows(ofBlock: block, queryLength: shape.queryLength)
  }

  /// What the kernels are told of the rows of a block, in the memory of its seat; nil for nothing.
  func keyMask(
    head: Int,
    firstRow: Int,
    rows: Int,
    seat: Int
  ) -> UnsafePointer<intfa_key_mask>? {
    guard operands.mask != nil || kernel.blockTable != nil || operands.alibiSlopes != nil else {
      return nil
    }
    let result = unsafe place(layout.keyMask, seat: seat, as: intfa_key_mask.self)
    unsafe result.initialize(to: intfa_key_mask())
    let steps = kernel.method.logitSteps * Self.log2e
    if let mask = operands.mask {
      let elements = unsafe place(layout.maskRows, seat: seat, as: UnsafeRawPointer?.self)
      let (batch, index) = head.quotientAndRemainder(dividingBy: shape.queryHeadCount)
      for row in 0..<rows {
        let offset = mask.broadcastOffset(batch: batch, head: index, row: firstRow + row)
        unsafe elements[row] = UnsafeRawPointer(
          mask.base + offset * mask.elementType.bitWidth / 8
        )
      }
      unsafe result.pointee.elements = UnsafePointer(elements)
      unsafe result.pointee.stride = Int64(mask.shape[3] == 1 ? 0 : mask.strides[3])
      unsafe result.pointee.element = mask.elementType.maskElement
      unsafe result.pointee.unit = steps
    }
    if let table = kernel.blockTable {
      let blocks = unsafe place(layout.blockRows, seat: seat, as: UnsafePointer<UInt8>?.self)
      for row in 0..<rows { unsafe blocks[row] = table.row(firstRow + row) }
      unsafe result.pointee.blocks = UnsafePointer(blocks)
      unsafe result.pointee.block_length = Int32(table.keyBlockLength)
    }
    if let slopes = operands.alibiSlopes {
      let rowSlopes = unsafe place(layout.slopes, seat: seat)
      let positions = unsafe place(layout.positions, seat: seat, as: Int32.self)
      let position = shape.keyValueLength - shape.queryLength + firstRow
      for row in 0..<rows {
        unsafe rowSlopes[row] = slopes[head] * steps
        unsafe positions[row] = Int32(position + row)
      }
      unsafe result.pointee.slopes = UnsafePointer(rowSlopes)
      unsafe result.pointee.positions = UnsafePointer(positions)
    }
    return unsafe UnsafePointer(result)
  }

  /// Calls `body` with those parts of `keys`, whole tiles, of which a row of the block sees a key.
  ///
  /// - Parameters:
  ///   - keys: from the beginning of a tile.
  ///   - head: the query head, batch-major.
  ///   - block: the query block.
  ///   - tileLength: keys of every tile but the first.
  ///   - body: called in key order.
  func forEachShownRange(
    of keys: Range<Int>,
    head: Int,
    block: Int,
    tileLength: Int,
    _ body: (Range<Int>) -> Void
  ) {
    let table = kernel.blockTable
    guard maskUnits != nil || table != nil else { return body(keys) }
    let rows = kernel.tileSizes.queryRows(ofBlock: block, queryLength: shape.queryLength)
    let shown = unsafe maskUnits.map {
      unsafe $0.shown(head: head, block: block, operands.mask, shape)
    }
    var (begin, start) = (keys.lowerBound, Int?.none)
    while begin < keys.upperBound {
      let end = min(begin == 0 ? recipe.firstTileLength : begin + tileLength, keys.upperBound)
      var isShown = table?.shows(rows, begin..<end) ?? true
      if isShown, let shown = unsafe shown {
        let unit = Int(INTFA_PACK_UNIT)
        isShown = (begin / unit...(end - 1) / unit).contains { unsafe shown[$0] != 0 }
      }
      if isShown, start == nil { start = begin }
      if !isShown, let first = start {
        body(first..<begin)
        start = nil
      }
      begin = end
    }
    if let start { body(start..<keys.upperBound) }
  }

  /// The sink of a head as a part of the softmax that has no value: part 1 of the seat.
  ///
  /// - Returns: whether there is one.
  func writeSink(head: Int, rows: Int, seat: Int) -> Bool {
    guard let sink = operands.sinks?[head], sink > -.infinity else { return false }
    let total = unsafe place(layout.total, seat: seat, part: 1)
    let reference = unsafe place(layout.reference, seat: seat, part: 1)
    let shifts = unsafe place(layout.rowShifts, seat: seat)
    // A cap sees the shift itself, so that its logits are already the unshifted ones.
    let isShifted = kernel.descriptor.options.softcap == nil
    for row in 0..<rows {
      let logit = unsafe sink - (isShifted ? shifts[row] : 0)
      unsafe total[row] = kernel.method.isTiled ? 255 : 1
      unsafe reference[row] = logit * Self.log2e * kernel.method.logitSteps
    }
    return true
  }
}

/// For every head and query block of a mask: one byte per packed unit of keys, whether any row sees one
/// of them.
@safe
final class CPUMaskUnits: @unchecked Sendable {
  // Sendable: the items of one stage write parts of their own, later stages read.
  private let bytes: UnsafeMutablePointer<UInt8>
  private let unitCount: Int
  /// For every item the number of the first element that no mask may have, or -1.
  let firstBad: UnsafeMutablePointer<Int64>
  /// Query blocks that the mask tells apart.
  let blockCount: Int
  let itemCount: Int

  init(_ mask: AttentionOperands.Operand, queryBlockCount: Int, keyValueLength: Int) {
    blockCount = mask.shape[2] == 1 ? 1 : queryBlockCount
    itemCount = mask.shape[0] * mask.shape[1] * blockCount
    unitCount = CPUTileSizes.pieceCount(keyValueLength, Int(INTFA_PACK_UNIT))
    unsafe bytes = .allocate(capacity: max(itemCount * unitCount, 1))
    unsafe firstBad = .allocate(capacity: max(itemCount, 1))
  }

  deinit {
    unsafe bytes.deallocate()
    unsafe firstBad.deallocate()
  }

  func shown(_ item: Int) -> UnsafeMutablePointer<UInt8> { unsafe bytes + item * unitCount }

  /// The units of a query head, batch-major, and a query block.
  func shown(
    head: Int,
    block: Int,
    _ mask: AttentionOperands.Operand?,
    _ shape: AttentionShape
  ) -> UnsafeMutablePointer<UInt8> {
    let (batch, index) = head.quotientAndRemainder(dividingBy: shape.queryHeadCount)
    let (batches, heads) = (mask?.shape[0] ?? 1, mask?.shape[1] ?? 1)
    let item = (batches == 1 ? 0 : batch) * heads + (heads == 1 ? 0 : index)
    return unsafe shown(item * blockCount + (blockCount == 1 ? 0 : block))
  }
}

/// Visible blocks as one byte each, for the kernels.
@safe
final class CPUBlockTable: @unchecked Sendable {
  // Sendable: written once, before anything else sees it.
  private let bytes: UnsafeMutablePointer<UInt8>
  private let blocks: VisibleBlocks
  private let columnCount: Int
  var keyBlockLength: Int { blocks.keyBlockLength }

  init(_ blocks: VisibleBlocks, keyValueLength: Int) {
    self.blocks = blocks
    columnCount = blocks.keyBlockCount(keyValueLength: keyValueLength)
    let count = blocks.visible.count * columnCount
    unsafe bytes = .allocate(capacity: max(count, 1))
    unsafe bytes.initialize(repeating: 0, count: max(count, 1))
    for (row, columns) in blocks.visible.enumerated() {
      for column in columns { unsafe bytes[row * columnCount + column] = 1 }
    }
  }

  deinit {
    unsafe bytes.deallocate()
  }

  /// The bytes of a query row.
  func row(_ row: Int) -> UnsafePointer<UInt8> {
    unsafe UnsafePointer(bytes + row / blocks.queryBlockLength * columnCount)
  }

  /// Whether one of the rows sees one of the keys.
  func shows(_ rows: Range<Int>, _ keys: Range<Int>) -> Bool {
    let length = blocks.queryBlockLength
    let columns = keys.lowerBound / keyBlockLength...(keys.upperBound - 1) / keyBlockLength
    return (rows.lowerBound / length...(rows.upperBound - 1) / length).contains { row in
      columns.contains { unsafe bytes[row * columnCount + $0] != 0 }
    }
  }
}

extension ElementType {
  /// What the kernels call the elements of a mask.
  var maskElement: intfa_mask_element {
    switch self {
    case .float16: INTFA_MASK_FLOAT16
    case .bfloat16: INTFA_MASK_BFLOAT16
    case .int8: INTFA_MASK_BOOLEAN
    case .float32, .float8, .int4: INTFA_MASK_FLOAT32
    }
  }
}
