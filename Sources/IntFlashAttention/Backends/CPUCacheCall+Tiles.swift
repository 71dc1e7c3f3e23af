internal import CAttentionKernels

extension CPUCacheCall {
  /// Tiles that one call of the kernel takes: in the pool, or open; with an outlier or without.
  private struct Segment {
    let keys: Range<Int>
    let hasOutlier: Bool
    let open: CPUOpenTile?
  }

  func attendTiles(
    _ block: CPUCacheBlock,
    _ keys: Range<Int>,
    into sums: CPUCacheWorkspace.Sums,
    seat: Int
  ) {
    for segment in segments(block, keys) {
      attend(block, segment, into: sums, seat: seat)
    }
  }

  /// Cuts tiles where they need another call; sums go on from call to call, so it changes no bit.
  private func segments(_ block: CPUCacheBlock, _ keys: Range<Int>) -> [Segment] {
    let recipe = recipe
    func tile(_ position: Int) -> Range<Int> {
      let start = recipe.tileStart(of: position, tileLength: recipe.tileLength)
      let length = start == 0 ? recipe.firstTileLength : recipe.tileLength
      return (start..<start + length).clamped(to: keys)
    }
    // A row knows of an outlier once it sees it; the rows of a block all do or none does.
    let flagged = block.sequence.outliers[block.head]
      .filter { $0 < block.firstEnd }.map(tile).filter { !$0.isEmpty }
    let open = block.sequence.open
    var result: [Segment] = []
    var begin = keys.lowerBound
    func takePlain(upTo end: Int) {
      guard begin < end else { return }
      if let open, open.start < end {
        if begin < open.start {
          result.append(Segment(keys: begin..<open.start, hasOutlier: false, open: nil))
        }
        result.append(Segment(keys: max(begin, open.start)..<end, hasOutlier: false, open: open))
      } else {
        result.append(Segment(keys: begin..<end, hasOutlier: false, open: nil))
      }
      begin = end
    }
    for tile in flagged {
      takePlain(upTo: tile.lowerBound)
      let isOpen = open.map { $0.start <= tile.lowerBound } ?? false
      result.append(Segment(keys: tile, hasOutlier: true, open: isOpen ? open : nil))
      begin = tile.upperBound
    }
    takePlain(upTo: keys.upperBound)
    return result
  }

  private func attend(
    _ block: CPUCacheBlock,
    _ segment: Segment,
    into sums: CPUCacheWorkspace.Sums,
    seat: Int
  ) {
    let head = block.head
    let origin = segment.open?.start ?? 0
    let tile = segment.hasOutlier ? FoldedValueScales.outlierTileLength : recipe.tileLength
    var arguments = unsafe intfa_attend_tiles()
    unsafe arguments.rows = Int32(block.rows)
    unsafe arguments.head_dimension = Int32(layout.headDimension)
    unsafe arguments.value_dimension = Int32(layout.valueDimension)
    unsafe arguments.key_begin = Int64(segment.keys.lowerBound - origin)
    unsafe arguments.key_end = Int64(segment.keys.upperBound - origin)
    unsafe arguments.first_tile = Int32(origin == 0 ? recipe.firstTileLength : tile)
    unsafe arguments.tile = Int32(tile)
    unsafe arguments.visible = block.visible
    unsafe arguments.visible.first -= Int64(origin)
    unsafe arguments.visible.end -= Int64(origin)
    unsafe arguments.visible.least_end -= Int64(origin)
    unsafe arguments.refines = recipe.refinesLastTile
    unsafe arguments.mask = keyMask(from: origin, seat: seat)
    unsafe arguments.query = UnsafePointer(
      workspace.place(workspace.queryCodes, seat, as: Int8.self)
    )
    unsafe arguments.query_scale = UnsafePointer(workspace.place(workspace.queryScales, seat))
    unsafe arguments.sums_codes = !segment.hasOutlier
    let folds: UnsafeMutablePointer<Float>
    if let open = segment.open {
      unsafe arguments.key = UnsafeRawPointer(open.keyUnit(head, 0))
      unsafe arguments.value = UnsafeRawPointer(open.valueUnit(head, 0))
      unsafe arguments.key_scale = UnsafePointer(open.memory.place(open.keyScales, head))
      unsafe folds = open.memory.place(open.folds, head)
      if segment.hasOutlier {
        unsafe arguments.real_weight = UnsafePointer(open.memory.place(open.realWeights, head))
      } else {
        unsafe arguments.weight = UnsafePointer(
          open.memory.place(open.weights, head, as: Int8.self)
        )
      }
    } else {
      unsafe arguments.fetch_end = Int64(block.seen.upperBound)
      let units = store.units
      unsafe arguments.key = UnsafeRawPointer(store.keyUnit(head, 0))
      unsafe arguments.value = UnsafeRawPointer(store.valueUnit(head, 0))
      unsafe arguments.int4_key = store.method.hasInt4Key
      unsafe arguments.int4_value = store.method.hasInt4Value
      unsafe arguments.key_scale = UnsafePointer(units.place(store.keyScales, head))
      unsafe folds = units.place(store.folds, head)
      if segment.hasOutlier {
        unsafe arguments.real_weight = UnsafePointer(units.place(store.realWeights, head))
      } else {
        unsafe arguments.weight = UnsafePointer(units.place(store.weights, head, as: Int8.self))
      }
    }
    unsafe arguments.bias = UnsafePointer(folds)
    if let softcap = call.options.softcap {
      unsafe arguments.softcap = softcap * Self.log2e * store.method.logitSteps
      unsafe arguments.row_shift = UnsafePointer(workspace.place(workspace.scaledShifts, seat))
      unsafe arguments.fold = UnsafePointer(folds)
      unsafe arguments.bias = store.zeros
    }
    unsafe arguments.out = sums.out
    unsafe arguments.out_stride = Int64(workspace.outStride)
    unsafe arguments.total = sums.total
    unsafe arguments.reference = sums.reference
    unsafe arguments.scratch = UnsafeMutableRawPointer(
      workspace.place(workspace.scratch, seat, as: UInt8.self)
    )
    unsafe block.units.withUnsafeBufferPointer { units in
      unsafe arguments.units = segment.open == nil ? units.baseAddress : nil
      unsafe kernels.attend_tiles(&arguments)
    }
  }
}
