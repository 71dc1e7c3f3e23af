internal import CAttentionKernels
import IntFlashAttention

/// New tokens on their way into a cache.
struct CUDACacheAppend {
  let cache: CUDAKVCache
  let module: CUDAModule
  let stream: CUDAStream
  let key: CUDACall.Operand
  let value: CUDACall.Operand

  private var layout: CUDACacheLayout { cache.layout }
  private static let first = Int(INTFA_CUDA_FIRST_TOKENS)

  private func place(_ offset: Int) -> UInt64 { cache.memory.address + UInt64(offset) }
  private var keyRotation: Int32 {
    CUDACall.rotation(cache.headDimension, CUDAKVCache.recipe.rotatesQueryAndKey)
  }
  private var valueRotation: Int32 {
    CUDACall.rotation(cache.valueDimension, CUDAKVCache.recipe.rotatesValue)
  }

  func run() throws(AttentionError) {
    try survey(key, 1, CUDAKVCache.recipe.key)
    try survey(value, 2, CUDAKVCache.recipe.value)
    let tokens = key.shape[2]
    let kept = max(min(Self.first - cache.count, tokens), 0)
    if kept > 0 { try keepFirst(kept) }
    guard tokens > kept else { return }
    try quantize(
      key: key.tokens(kept..<tokens),
      value: value.tokens(kept..<tokens),
      at: cache.count + kept
    )
  }

  private func survey(
    _ operand: CUDACall.Operand,
    _ index: Int32,
    _ format: OperandFormat,
    sums: UInt64 = 0,
    maxima: UInt64 = 0
  ) throws(AttentionError) {
    var p = intfa_cuda_survey()
    p.rows = operand.rows
    p.limit = InputCheck.limit(for: format)
    p.tensor = index
    p.rotation = valueRotation
    p.maxima_pitch = Int32(Self.first)
    p.status = place(layout.status)
    p.sums = sums
    p.maxima = maxima
    let unit = Int(INTFA_CUDA_SUM_BLOCK)
    let blocks = layout.heads * ((operand.shape[2] + unit - 1) / unit)
    try module.launch(.survey, blocks: blocks, p, on: stream)
  }

  /// Keeps tokens as they came, takes the statistics from all that are kept, and quantises those.
  private func keepFirst(_ tokens: Int) throws(AttentionError) {
    for (operand, offset) in [(key, layout.firstKeys), (value, layout.firstValues)] {
      var p = intfa_cuda_keep()
      p.rows = operand.tokens(0..<tokens).rows
      p.first = Int32(cache.count)
      p.target = place(offset)
      let blocks = CUDACall.rowBlocks(layout.heads * tokens)
      try module.launch(.keepRows, blocks: blocks, p, on: stream)
    }
    let count = cache.count + tokens
    func kept(_ offset: Int, _ dimension: Int) -> CUDACall.Operand {
      CUDACall.Operand(
        address: place(offset),
        elementType: .float32,
        shape: [1, layout.heads, count, dimension],
        strides: [0, Self.first * dimension, dimension, 1]
      )
    }
    let keys = kept(layout.firstKeys, cache.headDimension)
    let values = kept(layout.firstValues, cache.valueDimension)
    try survey(keys, 1, CUDAKVCache.recipe.key, sums: place(layout.keySums))
    try survey(values, 2, CUDAKVCache.recipe.value, maxima: place(layout.maxima))
    var mean = intfa_cuda_mean()
    mean.heads = Int32(layout.heads)
    mean.tokens = Int32(count)
    mean.dimension = Int32(cache.headDimension)
    mean.rotation = keyRotation
    mean.sums = place(layout.keySums)
    mean.mean = place(layout.keyMean)
    try module.launch(.means, blocks: layout.heads, mean, on: stream)
    var scales = intfa_cuda_value_scales()
    scales.heads = Int32(layout.heads)
    scales.tokens = Int32(count)
    scales.pitch = Int32(Self.first)
    scales.folded = 1
    scales.maxima = place(layout.maxima)
    scales.results = place(layout.valueHeads)
    try module.launch(.valueScales, blocks: layout.heads, scales, on: stream)
    try quantize(key: keys, value: values, at: 0)
  }

  /// Quantises tokens with the statistics that there are.
  private func quantize(
    key: CUDACall.Operand,
    value: CUDACall.Operand,
    at position: Int
  ) throws(AttentionError) {
    let blocks = CUDACall.rowBlocks(layout.heads * key.shape[2])
    var p = intfa_cuda_quantize()
    p.rows = key.rows
    p.rotation = keyRotation
    p.code_pitch = Int32(layout.dimension)
    p.code_rows = Int32(layout.pitch)
    p.scale_pitch = Int32(layout.pitch)
    p.scale_factor = 1
    p.pairs = 1
    p.pack = 1
    p.codes = place(layout.key + position * layout.dimension)
    p.scales = place(layout.keyScales + 8 * position)
    p.mean = place(layout.keyMean)
    try module.launch(.quantizeRows, blocks: blocks, p, on: stream)
    var v = intfa_cuda_append()
    v.rows = value.rows
    v.rotation = valueRotation
    v.code_pitch = Int32(layout.dimension)
    v.pitch = Int32(layout.pitch)
    v.first = Int32(position)
    v.results = place(layout.valueHeads)
    v.codes = place(layout.value)
    v.weights = place(layout.weights)
    v.real_weights = place(layout.realWeights)
    v.fold = place(layout.fold)
    try module.launch(.appendValues, blocks: blocks, v, on: stream)
  }
}

/// One call on a cache.
///
/// A head of the loop is a key/value head; its rows are the query heads of the group, token by token.
struct CUDACacheAttend {
  let cache: CUDAKVCache
  let module: CUDAModule
  let descriptor: AttentionDescriptor
  let sizes: CUDATileSizes
  let layout: CUDACacheWorkspace
  let workspace: UInt64
  let stream: CUDAStream
  let query: CUDACall.Operand
  let output: CUDACall.Operand
  let logSumExp: CUDACall.Operand?

  private var shape: AttentionShape { descriptor.shape }
  private func place(_ offset: Int) -> UInt64 { workspace + UInt64(offset) }
  private func cached(_ offset: Int) -> UInt64 { cache.memory.address + UInt64(offset) }

  func run() throws(AttentionError) {
    let rows = shape.batchCount * shape.queryHeadCount * shape.queryLength
    try prepareQueries(rows)
    try module.launch(
      .attend,
      blocks: sizes.blockCount,
      splits: sizes.splitCount,
      threads: sizes.threadCount,
      sharedByteCount: sizes.sharedByteCount,
      parameters(),
      on: stream
    )
    guard sizes.splitCount > 1 else { return }
    try module.launch(.merge, blocks: CUDACall.rowBlocks(rows), outputParameters(), on: stream)
  }

  private func prepareQueries(_ rows: Int) throws(AttentionError) {
    var survey = intfa_cuda_survey()
    survey.rows = query.rows
    survey.limit = InputCheck.limit(for: CUDAKVCache.recipe.query)
    survey.rotation = 1
    survey.status = cached(cache.layout.status)
    let unit = Int(INTFA_CUDA_SUM_BLOCK)
    let blocks =
      shape.batchCount * shape.queryHeadCount * ((shape.queryLength + unit - 1) / unit)
    try module.launch(.survey, blocks: blocks, survey, on: stream)

    let rotation = CUDACall.rotation(
      shape.headDimension,
      CUDAKVCache.recipe.rotatesQueryAndKey
    )
    var p = intfa_cuda_quantize()
    p.rows = query.rows
    p.rotation = rotation
    p.code_pitch = Int32(sizes.dimension)
    p.code_rows = Int32(shape.queryLength * shape.groupSize)
    p.scale_pitch = p.code_rows
    p.pack = Int32(shape.groupSize)
    p.scale_factor = descriptor.softmaxScale * CUDACall.log2e / Float(rotation)
    p.codes = place(layout.query)
    p.scales = place(layout.queryScales)
    if logSumExp != nil {
      p.shift_group = Int32(shape.groupSize)
      p.shift_factor = descriptor.softmaxScale
      p.shift_means = cached(cache.layout.keyMean)
      p.shifts = place(layout.shifts)
    }
    try module.launch(.quantizeRows, blocks: CUDACall.rowBlocks(rows), p, on: stream)
  }

  private func outputParameters() -> intfa_cuda_output {
    var p = intfa_cuda_output()
    p.rows = output.rows
    if let logSumExp {
      p.log_sum_exp = logSumExp.address
      p.log_sum_exp_batch_stride = Int64(logSumExp.strides[0])
      p.log_sum_exp_head_stride = Int64(logSumExp.strides[1])
      p.log_sum_exp_token_stride = Int64(logSumExp.strides[2])
      p.shifts = place(layout.shifts)
    }
    p.value_heads = cached(cache.layout.valueHeads)
    p.group = 1
    p.pack = Int32(shape.groupSize)
    p.rotation = CUDACall.rotation(shape.valueDimension, CUDAKVCache.recipe.rotatesValue)
    p.log2_levels = CUDAMethod.int8.log2Levels
    p.splits = Int32(sizes.splitCount)
    p.partials = place(layout.partials)
    p.references = place(layout.references)
    p.totals = place(layout.totals)
    p.partial_pitch = Int32(sizes.dimension)
    return p
  }

  private func parameters() -> intfa_cuda_attention {
    let seen = descriptor.options.mask.visibility(
      queryLength: shape.queryLength,
      keyValueLength: shape.keyValueLength
    )
    var p = intfa_cuda_attention()
    p.output = outputParameters()
    p.visible = intfa_cuda_visible(
      first: Int32(seen.first),
      end: Int32(seen.end),
      step: Int32(seen.step),
      rows_per_step: Int32(shape.groupSize)
    )
    p.key_heads = Int32(cache.layout.heads)
    p.key_tokens = Int32(shape.keyValueLength)
    p.key_rows = Int32(cache.layout.pitch)
    p.pitch = Int32(cache.layout.pitch)
    p.split_tiles = Int32(sizes.tilesPerSplit)
    p.refines = CUDAKVCache.recipe.refinesLastTile && seen.step > 0 ? 1 : 0
    p.query = place(layout.query)
    p.query_scales = place(layout.queryScales)
    p.key = cached(cache.layout.key)
    p.key_scales = cached(cache.layout.keyScales)
    p.biases = cached(cache.layout.fold)
    p.value = cached(cache.layout.value)
    p.weights = cached(cache.layout.weights)
    p.real_weights = cached(cache.layout.realWeights)
    return p
  }
}
