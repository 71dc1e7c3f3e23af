internal import CAttentionKernels

extension CPUCacheCall {
  /// The loop of the running maximum, over units that lie one after the other at a time.
  ///
  /// Its tiles may be cut anywhere: these recipes' maximum moves in whole powers of two.
  func attendFloats(
    _ block: CPUCacheBlock,
    _ keys: Range<Int>,
    into sums: CPUCacheWorkspace.Sums,
    seat: Int
  ) {
    let length = KVCacheLayout.unitLength
    let last = (keys.upperBound - 1) / length
    var unit = keys.lowerBound / length
    while unit <= last {
      let first = unit
      repeat { unit += 1 } while unit <= last && block.units[unit] == block.units[unit - 1] + 1
      attendFloats(
        block,
        run: (first * length..<unit * length).clamped(to: 0..<keys.upperBound),
        into: sums,
        seat: seat
      )
    }
  }

  private func attendFloats(
    _ block: CPUCacheBlock,
    run keys: Range<Int>,
    into sums: CPUCacheWorkspace.Sums,
    seat: Int
  ) {
    guard let formats = store.method.runningFormats else { return }
    let unit = block.units[keys.lowerBound / KVCacheLayout.unitLength]
    var arguments = unsafe intfa_attend_running()
    unsafe arguments.rows = Int32(block.rows)
    unsafe arguments.head_dimension = Int32(layout.headDimension)
    unsafe arguments.value_dimension = Int32(layout.valueDimension)
    // Positions count from the beginning of the run.
    unsafe arguments.key_end = Int64(keys.count)
    unsafe arguments.first_tile = Int32(recipe.firstTileLength)
    unsafe arguments.tile = Int32(recipe.tileLength)
    unsafe arguments.visible = block.visible
    unsafe arguments.visible.first -= Int64(keys.lowerBound)
    unsafe arguments.visible.end -= Int64(keys.lowerBound)
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
