internal import CAttentionKernels
import IntFlashAttention

/// Where the parts of a cache begin, in bytes; every part is aligned to 256.
struct CUDACacheLayout {
  /// Key/value heads of all sequences.
  let heads: Int
  /// Channels of a row of codes.
  let dimension: Int
  /// Entries of a head's tables and rows of its codes: whole tiles.
  let pitch: Int
  private(set) var byteCount = 0

  // At the beginning, where streams look for it.
  private(set) var status = 0
  private(set) var firstKeys = 0
  private(set) var firstValues = 0
  private(set) var keySums = 0
  private(set) var keyMean = 0
  private(set) var maxima = 0
  private(set) var valueHeads = 0
  private(set) var key = 0
  private(set) var value = 0
  private(set) var keyScales = 0
  private(set) var weights = 0
  private(set) var realWeights = 0
  private(set) var fold = 0

  /// For the heads of a shape whose keys are the capacity.
  init(_ shape: AttentionShape) {
    let sizes = CUDATileSizes(cached: shape, multiprocessorCount: 1)
    let heads = shape.batchCount * shape.keyValueHeadCount
    let pitch = (shape.keyValueLength + 127) / 128 * 128
    let first = Int(INTFA_CUDA_FIRST_TOKENS)
    self.heads = heads
    self.pitch = pitch
    dimension = sizes.dimension
    var place = DevicePlaces()
    status = place.reserve(MemoryLayout<intfa_cuda_status>.size)
    firstKeys = place.reserve(4 * heads * first * shape.headDimension)
    firstValues = place.reserve(4 * heads * first * shape.valueDimension)
    keySums = place.reserve(4 * heads * shape.headDimension)
    keyMean = place.reserve(4 * heads * shape.headDimension)
    maxima = place.reserve(4 * heads * first)
    valueHeads = place.reserve(MemoryLayout<intfa_cuda_value_head>.size * heads)
    key = place.reserve(heads * pitch * dimension)
    value = place.reserve(heads * pitch * dimension)
    keyScales = place.reserve(8 * heads * pitch)
    weights = place.reserve(heads * pitch)
    realWeights = place.reserve(4 * heads * pitch)
    fold = place.reserve(4 * heads * pitch)
    byteCount = place.byteCount
  }
}

/// Where the parts of a call on a cache begin.
struct CUDACacheWorkspace {
  private(set) var byteCount = 0
  private(set) var query = 0
  private(set) var queryScales = 0
  private(set) var shifts = 0
  private(set) var partials = 0
  private(set) var references = 0
  private(set) var totals = 0

  init(_ shape: AttentionShape, _ sizes: CUDATileSizes) {
    let rows = shape.batchCount * shape.queryHeadCount * shape.queryLength
    var place = DevicePlaces()
    query = place.reserve(rows * sizes.dimension)
    queryScales = place.reserve(4 * rows)
    shifts = place.reserve(4 * rows)
    if sizes.splitCount > 1 {
      partials = place.reserve(4 * sizes.splitCount * rows * sizes.dimension)
      references = place.reserve(4 * sizes.splitCount * rows)
      totals = place.reserve(4 * sizes.splitCount * rows)
    }
    byteCount = place.byteCount
  }
}

/// Hands out parts of a piece of device memory, each aligned to 256 bytes.
struct DevicePlaces {
  private(set) var byteCount = 0

  /// `lead` bytes before and behind the part may be read too.
  mutating func reserve(_ bytes: Int, lead: Int = 0) -> Int {
    let start = byteCount + (lead + 255) / 256 * 256
    byteCount = start + (max(bytes, 1) + lead + 255) / 256 * 256
    return start
  }
}
