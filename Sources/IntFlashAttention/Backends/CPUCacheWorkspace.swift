internal import CAttentionKernels

/// Memory of one call on caches: a seat per thread, and the results of spans that are merged later.
@safe
final class CPUCacheWorkspace: @unchecked Sendable {
  // Sendable: each item writes its seat and its own results.
  private let memory: CPUMemory
  let outStride: Int

  // Per seat.
  let queryCodes: CPUMemory.Region  // [rows][D] int8
  let queryScales: CPUMemory.Region  // [rows] float
  let queryRows: CPUMemory.Region  // [rows][D] float
  let rowShifts: CPUMemory.Region  // [rows] float, natural units
  let scaledShifts: CPUMemory.Region  // [rows] float, in the kernel's units
  let keyMask: CPUMemory.Region  // intfa_key_mask
  let maskRows: CPUMemory.Region  // [rows] pointer to the mask's elements
  let blockRows: CPUMemory.Region  // [rows] pointer to visible blocks
  let slopes: CPUMemory.Region  // [rows] float
  let positions: CPUMemory.Region  // [rows] int32
  let scratch: CPUMemory.Region
  private let out: CPUMemory.Region  // [seat][2][rows][outStride] float
  private let totals: CPUMemory.Region  // [seat][2][2][rows] float: totals, references

  // Per result.
  private let partialOut: CPUMemory.Region
  private let partialTotals: CPUMemory.Region
  private let rows: Int
  private let partialRows: Int

  /// Numerators, denominators and exponent references of some rows.
  @safe
  struct Sums {
    let out: UnsafeMutablePointer<Float>
    let total: UnsafeMutablePointer<Float>
    let reference: UnsafeMutablePointer<Float>
    let outStride: Int

    /// Sums of nothing; kernels work on whole groups of rows.
    func clear(rows: Int, start: Float) {
      let rows = CPUTileSizes.padded(rows, to: Int(INTFA_ROW_UNIT))
      unsafe out.update(repeating: 0, count: rows * outStride)
      unsafe total.update(repeating: 0, count: rows)
      unsafe reference.update(repeating: start, count: rows)
    }
  }

  init(
    _ layout: KVCacheLayout,
    rows: Int,
    partialRows: Int,
    partialCount: Int,
    threads: Int
  ) throws(AttentionError) {
    let unit = Int(INTFA_ROW_UNIT)
    let rows = CPUTileSizes.padded(rows, to: unit)
    let partialRows = CPUTileSizes.padded(partialRows, to: unit)
    self.rows = rows
    self.partialRows = partialRows
    outStride = CPUTileSizes.padded(layout.valueDimension, to: Int(INTFA_OUT_UNIT))
    let float = MemoryLayout<Float>.size
    var memory = CPUMemory.Layout()
    queryCodes = memory.take(rows * layout.headDimension, parts: threads)
    queryScales = memory.take(float * rows, parts: threads)
    queryRows = memory.take(float * rows * layout.headDimension, parts: threads)
    rowShifts = memory.take(float * rows, parts: threads)
    scaledShifts = memory.take(float * rows, parts: threads)
    keyMask = unsafe memory.take(MemoryLayout<intfa_key_mask>.size, parts: threads)
    maskRows = unsafe memory.take(MemoryLayout<UnsafeRawPointer?>.stride * rows, parts: threads)
    blockRows = unsafe memory.take(
      MemoryLayout<UnsafePointer<UInt8>?>.stride * rows,
      parts: threads
    )
    slopes = memory.take(float * rows, parts: threads)
    positions = memory.take(MemoryLayout<Int32>.size * rows, parts: threads)
    scratch = memory.take(Int(INTFA_SCRATCH_BYTES), parts: threads)
    out = memory.take(float * rows * outStride, parts: 2 * threads)
    totals = memory.take(float * 2 * rows, parts: 2 * threads)
    partialOut = memory.take(float * partialRows * outStride, parts: partialCount)
    partialTotals = memory.take(float * 2 * partialRows, parts: partialCount)
    guard let block = CPUMemory(memory, zeroed: false) else {
      throw AttentionError(.outOfMemory, "no memory for a workspace of \(memory.byteCount) bytes")
    }
    self.memory = block
  }

  func place<T>(_ region: CPUMemory.Region, _ seat: Int, as type: T.Type = Float.self)
    -> UnsafeMutablePointer<T>
  {
    unsafe memory.place(region, seat, as: type)
  }

  func sums(seat: Int, _ part: Int) -> Sums {
    let index = 2 * seat + part
    let totals = unsafe memory.place(totals, index)
    return unsafe Sums(
      out: memory.place(out, index),
      total: totals,
      reference: totals + rows,
      outStride: outStride
    )
  }

  func sums(partial index: Int) -> Sums {
    let totals = unsafe memory.place(partialTotals, index)
    return unsafe Sums(
      out: memory.place(partialOut, index),
      total: totals,
      reference: totals + partialRows,
      outStride: outStride
    )
  }
}
