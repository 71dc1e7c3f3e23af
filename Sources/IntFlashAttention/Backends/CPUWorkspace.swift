#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif
internal import CAttentionKernels

/// Where everything that a call needs lies in one block of memory: a pure function of the shape.
struct CPUWorkspaceLayout: Hashable, Sendable {
  private(set) var byteCount = 0

  // Per call. Heads are numbered batch-major: [B · H]. Nk is padded to whole packed units.
  private(set) var queryMeans = Region()  // [B·Hq][D] float
  private(set) var rotatedQueryMeans = Region()  // [B·Hq][D] float
  private(set) var keyMeans = Region()  // [B·Hkv][D] float
  private(set) var querySums = Region()  // [B·Hq][sum blocks][D] float
  private(set) var keySums = Region()  // [B·Hkv][sum blocks][D] float
  private(set) var largest = Region()  // [survey items] float
  private(set) var firstBad = Region()  // [survey items] Int64
  private(set) var keyCodes = Region()  // [B·Hkv] keys as the kernels pack them
  private(set) var keyScales = Region()  // [B·Hkv][Nk] float
  private(set) var biases = Region()  // [B·Hq][Nk] float, or one row of zeros
  private(set) var folds = Region()  // [B·Hkv][Nk] float
  private(set) var valueMaxima = Region()  // [B·Hkv][Nk] float
  private(set) var valueMultipliers = Region()  // [B·Hkv][Nk] float
  private(set) var valueCodes = Region()  // [B·Hkv] values as the kernels pack them
  private(set) var weights = Region()  // [B·Hkv][Nk] int8
  private(set) var realWeights = Region()  // [B·Hkv][Nk] float
  private(set) var valueUnits = Region()  // [B·Hkv] float
  private(set) var valueFlags = Region()  // [B·Hkv] CPUCall.ValueFlags
  private(set) var seats = Region()  // [threads] of what one thread needs

  // Inside a seat.
  private(set) var seatByteCount = 0
  private(set) var queryCodes = Region()  // [block][D] int8
  private(set) var queryScales = Region()  // [block] float
  private(set) var queryRows = Region()  // [block][D] float
  private(set) var rowShifts = Region()  // [block] float, natural units
  private(set) var scaledShifts = Region()  // [block] float, in the kernel's units
  private(set) var out = Region()  // [2][block][outStride] float
  private(set) var outStride = 0
  private(set) var total = Region()  // [2][block] float
  private(set) var reference = Region()  // [2][block] float
  private(set) var keyMask = Region()  // [1] intfa_key_mask
  private(set) var maskRows = Region()  // [block] pointer
  private(set) var blockRows = Region()  // [block] pointer
  private(set) var slopes = Region()  // [block] float
  private(set) var positions = Region()  // [block] Int32
  private(set) var codes = Region()  // [pack rows][max(D, Dv)] int8, before they are packed
  private(set) var scratch = Region()

  /// A part of the block: `offset` bytes from its beginning, cache-line aligned.
  struct Region: Hashable, Sendable {
    var offset = 0
    /// Bytes per head, or of the whole.
    var stride = 0
  }

  init(_ call: CPUKernel) {
    let shape = call.descriptor.shape
    let recipe = call.descriptor.recipe
    let queryHeads = shape.batchCount * shape.queryHeadCount
    let keyHeads = shape.batchCount * shape.keyValueHeadCount
    let (d, dv) = (shape.headDimension, shape.valueDimension)
    let keys = CPUTileSizes.padded(shape.keyValueLength, to: Int(INTFA_PACK_UNIT))
    let float = MemoryLayout<Float>.size

    largest = take(float * call.surveyItemCount)
    firstBad = take(MemoryLayout<Int64>.size * call.surveyItemCount)
    if recipe.queryCentering == .head {
      let blocks = CPUTileSizes.pieceCount(shape.queryLength, HeadRows.sumBlock)
      querySums = take(float * blocks * d, heads: queryHeads)
      queryMeans = take(float * d, heads: queryHeads)
      rotatedQueryMeans = take(float * d, heads: queryHeads)
    }
    if recipe.centersKey {
      let blocks = CPUTileSizes.pieceCount(keys, HeadRows.sumBlock)
      keySums = take(float * blocks * d, heads: keyHeads)
      keyMeans = take(float * d, heads: keyHeads)
    }
    keyCodes = take(call.keyBytesPerHead, heads: keyHeads)
    valueCodes = take(call.valueBytesPerHead, heads: keyHeads)
    if call.method.hasIntegerScores {
      keyScales = take(float * keys, heads: keyHeads)
      biases = take(float * keys, heads: recipe.queryCentering == .head ? queryHeads : 1)
    }
    if call.method.hasIntegerValues {
      valueMultipliers = take(float * keys, heads: keyHeads)
    }
    if case .tiles = call.method {
      valueMaxima = take(float * keys, heads: keyHeads)
      weights = take(keys, heads: keyHeads)
      realWeights = take(float * keys, heads: keyHeads)
      valueUnits = take(float * keyHeads)
      valueFlags = take(keyHeads)
      folds = take(float * keys, heads: keyHeads)
    }

    let start = byteCount
    let block = call.tileSizes.queryBlockLength
    queryCodes = take(block * d)
    queryScales = take(float * block)
    queryRows = take(float * block * d)
    rowShifts = take(float * block)
    scaledShifts = take(float * block)
    outStride = CPUTileSizes.padded(dv, to: Int(INTFA_OUT_UNIT))
    out = take(float * block * outStride, heads: 2)
    total = take(float * block, heads: 2)
    reference = take(float * block, heads: 2)
    keyMask = unsafe take(MemoryLayout<intfa_key_mask>.stride)
    maskRows = unsafe take(MemoryLayout<UnsafeRawPointer>.size * block)
    blockRows = unsafe take(MemoryLayout<UnsafeRawPointer>.size * block)
    slopes = take(float * block)
    positions = take(MemoryLayout<Int32>.size * block)
    if call.method.hasIntegerScores || call.method.hasIntegerValues {
      codes = take(call.tileSizes.packLength * max(d, dv))
    }
    scratch = take(call.scratchByteCount)
    seatByteCount = byteCount - start
    seats = Region(offset: start, stride: seatByteCount)
    byteCount = start + seatByteCount * call.threadCount
  }

  private mutating func take(_ bytes: Int, heads: Int = 1) -> Region {
    let stride = CPUTileSizes.padded(bytes, to: 64)
    defer { byteCount += stride * heads }
    return Region(offset: byteCount, stride: stride)
  }
}

/// Memory for one call at a time; kept by its kernel for the next.
@safe
final class CPUWorkspace: @unchecked Sendable {
  // Sendable: a call takes it out of the kernel's store, so only that call's threads use it.
  let base: UnsafeMutableRawPointer
  let layout: CPUWorkspaceLayout

  /// Memory that is not written yet, so that each page comes from near the thread that first uses it.
  init(_ layout: CPUWorkspaceLayout) throws(AttentionError) {
    let byteCount = layout.byteCount
    guard let base = unsafe AlignedMemory.allocate(byteCount: byteCount, zeroed: false) else {
      throw AttentionError(.outOfMemory, "no memory for a workspace of \(byteCount) bytes")
    }
    unsafe self.base = base
    self.layout = layout
  }

  deinit {
    unsafe free(base)
  }
}
