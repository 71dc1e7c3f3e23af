internal import CAttentionKernels
import IntFlashAttention

/// Where the parts of a call's device memory begin, in bytes; every part is aligned to 256.
struct CUDAWorkspaceLayout: Hashable, Sendable {
  private(set) var byteCount = 0

  private(set) var status = 0
  /// The table of real weights and what is read before and behind it.
  ///
  /// That multiplies zeros, so it must be finite. Codes and bytes always are, and logits of keys that do
  /// not exist are dropped, whatever their scales and biases are.
  private(set) var realWeightTable = 0..<0
  // INT8: sums, means and codes.
  private(set) var querySums = 0
  private(set) var keySums = 0
  private(set) var queryMean = 0
  private(set) var rotatedQueryMean = 0
  private(set) var keyMean = 0
  private(set) var queryScales = 0
  private(set) var shifts = 0
  private(set) var keyScales = 0
  private(set) var biases = 0
  private(set) var maxima = 0
  private(set) var valueHeads = 0
  private(set) var weights = 0
  private(set) var realWeights = 0
  private(set) var fold = 0
  // INT8 codes, or the operands in 16 bits.
  private(set) var query = 0
  private(set) var key = 0
  private(set) var value = 0
  // Results of the splits.
  private(set) var partials = 0
  private(set) var references = 0
  private(set) var totals = 0

  /// Entries of a table over keys: whole tiles of every length.
  let pitch: Int

  init(_ shape: AttentionShape, _ method: CUDAMethod, _ sizes: CUDATileSizes) {
    let queryHeads = shape.batchCount * shape.queryHeadCount
    let keyHeads = shape.batchCount * shape.keyValueHeadCount
    let (queries, keys) = (shape.queryLength, shape.keyValueLength)
    let (d, padded) = (shape.headDimension, sizes.dimension)
    let pitch = (keys + 127) / 128 * 128
    self.pitch = pitch
    var place = DevicePlaces()
    // Tiles at the ends of a table read what is before and behind it.
    func reserve(_ bytes: Int, lead: Int = 0) -> Int { place.reserve(bytes, lead: lead) }
    func blocks(_ tokens: Int) -> Int {
      (tokens + Int(INTFA_CUDA_SUM_BLOCK) - 1) / Int(INTFA_CUDA_SUM_BLOCK)
    }
    let lead = Int(INTFA_CUDA_TABLE_LEAD)
    status = reserve(MemoryLayout<intfa_cuda_status>.size)
    let elementBytes = method.hasIntegerProducts ? 1 : 2
    query = reserve(queryHeads * queries * padded * elementBytes)
    key = reserve(keyHeads * keys * padded * elementBytes)
    let valueTokens = sizes.family == .sm90 ? pitch : keys
    value = reserve(keyHeads * valueTokens * padded * elementBytes)
    if method.hasIntegerProducts {
      querySums = reserve(4 * queryHeads * blocks(queries) * d)
      keySums = reserve(4 * keyHeads * blocks(keys) * d)
      queryMean = reserve(4 * queryHeads * d)
      rotatedQueryMean = reserve(4 * queryHeads * d)
      keyMean = reserve(4 * keyHeads * d)
      queryScales = reserve(4 * queryHeads * queries)
      shifts = reserve(4 * queryHeads * queries)
      // A pair for each key on sm_80.
      keyScales = reserve(8 * keyHeads * pitch, lead: 8 * lead)
      biases = reserve(4 * queryHeads * pitch, lead: 4 * lead)
      maxima = reserve(4 * keyHeads * pitch)
      valueHeads = reserve(MemoryLayout<intfa_cuda_value_head>.size * keyHeads)
      weights = reserve(keyHeads * pitch, lead: lead)
      let start = place.byteCount
      realWeights = reserve(4 * keyHeads * pitch, lead: 4 * lead)
      realWeightTable = start..<place.byteCount
      fold = reserve(4 * keyHeads * pitch)
    }
    if sizes.splitCount > 1 {
      let rows = sizes.splitCount * queryHeads * queries
      partials = reserve(4 * rows * padded)
      references = reserve(4 * rows)
      totals = reserve(4 * rows)
    }
    byteCount = place.byteCount
  }
}
