internal import CAttentionKernels

extension CPUCacheCall {
  /// The loop of the running maximum, over units that lie one after the other at a time.
  ///
  /// Every piece is whole units, and sums go on from one to the next, so that the bits are the same
  /// wherever pages lie.
  func attendFloats(
    _ block: CPUCacheBlock,
    _ shown: [Range<Int>],
    into sums: CPUCacheWorkspace.Sums,
    seat: Int
  ) {
    let pieces = shown.flatMap { self.pieces(of: $0, block.units) }
    for (index, keys) in pieces.enumerated() {
      attendFloats(
        block,
        piece: keys,
        resumes: index > 0,
        pauses: index < pieces.count - 1,
        into: sums,
        seat: seat
      )
    }
  }

  private func pieces(of keys: Range<Int>, _ units: [Int32]) -> [Range<Int>] {
    let length = KVCacheLayout.unitLength
    let last = (keys.upperBound - 1) / length
    var pieces: [Range<Int>] = []
    var unit = keys.lowerBound / length
    while unit <= last {
      let first = unit
      repeat { unit += 1 } while unit <= last && units[unit] == units[unit - 1] + 1
      pieces.append((first * length..<unit * length).clamped(to: 0..<keys.upperBound))
    }
    return pieces
  }

  private func attendFloats(
    _ block: CPUCacheBlock,
    piece keys: Range<Int>,
    resumes: Bool,
    pauses: Bool,
    into sums: CPUCacheWorkspace.Sums,
    seat: Int
  ) {
    guard let formats = store.method.runningFormats else { return }
    let unit = block.units[keys.lowerBound / KVCacheLayout.unitLength]
    var arguments = unsafe intfa_attend_running()
    unsafe arguments.rows = Int32(block.rows)
    unsafe arguments.head_dimension = Int32(layout.headDimension)
    unsafe arguments.value_dimension = Int32(layout.valueDimension)
    // Positions count from the beginning of the piece.
    unsafe arguments.key_end = Int64(keys.count)
    unsafe arguments.first_tile = Int32(recipe.firstTileLength)
    unsafe arguments.tile = Int32(recipe.tileLength)
    unsafe arguments.visible = block.visible
    unsafe arguments.visible.first -= Int64(keys.lowerBound)
    unsafe arguments.visible.end -= Int64(keys.lowerBound)
    unsafe arguments.visible.least_end -= Int64(keys.lowerBound)
    unsafe arguments.mask = keyMask(from: keys.lowerBound, seat: seat)
    unsafe arguments.in_units = true
    unsafe arguments.resumes = resumes
    unsafe arguments.pauses = pauses
    unsafe arguments.formats = formats
    unsafe arguments.query = intfa_rows(
      base: workspace.place(workspace.queryRows, seat),
      stride: Int64(layout.headDimension),
      format: INTFA_FLOAT32
    )
    unsafe arguments.query_multiplier = 1
    unsafe arguments.query_scale = UnsafePointer(workspace.place(workspace.queryScales, seat))
    unsafe arguments.key = UnsafeRawPointer(store.keyUnit(block.head, unit))
    unsafe arguments.value = UnsafeRawPointer(store.valueUnit(block.head, unit))
    if let softcap = call.options.softcap {
      unsafe arguments.softcap = softcap * Self.log2e
      unsafe arguments.row_shift = UnsafePointer(workspace.place(workspace.scaledShifts, seat))
    }
    unsafe arguments.out = sums.out
    unsafe arguments.out_stride = Int64(workspace.outStride)
    unsafe arguments.total = sums.total
    unsafe arguments.reference = sums.reference
    unsafe arguments.scratch = UnsafeMutableRawPointer(
      workspace.place(workspace.scratch, seat, as: UInt8.self)
    )
    unsafe kernels.attend_running(&arguments)
  }
}
