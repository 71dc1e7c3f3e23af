internal import CAttentionKernels
import IntFlashAttention

/// One call on a device: the kernels in order, each with its arguments.
struct CUDACall {
  let kernel: CUDAKernel
  let base: UInt64
  let stream: CUDAStream
  let query: Operand
  let key: Operand
  let value: Operand
  let output: Operand
  let logSumExp: Operand?
  /// Where the tile loop begins and ends, if somebody wants to know.
  var timer: CUDATimer?

  private var shape: AttentionShape { kernel.descriptor.shape }
  private var sizes: CUDATileSizes { kernel.sizes }
  private var layout: CUDAWorkspaceLayout { kernel.layout }
  private var recipe: QuantizationRecipe { kernel.descriptor.recipe }
  private var queryHeads: Int { shape.batchCount * shape.queryHeadCount }
  private var keyHeads: Int { shape.batchCount * shape.keyValueHeadCount }

  private func place(_ offset: Int) -> UInt64 { base + UInt64(offset) }

  func run() throws(AttentionError) {
    try stream.clearStatus(place(layout.status))
    let weights = layout.realWeightTable
    try stream.fill(place(weights.lowerBound), 0, byteCount: weights.count)
    try survey()
    if kernel.method.hasIntegerProducts {
      if recipe.centersKey { try findMeans() }
      try quantizeValues()
      try quantizeKeys()
      try quantizeQueries()
    } else {
      for (operand, offset) in [
        (query, layout.query), (key, layout.key), (value, layout.value),
      ] where !isReady(operand) {
        try convert(operand, to: offset)
      }
    }
    try timer?.loopBegins(on: stream)
    try attend()
    try timer?.loopEnds(on: stream)
    guard sizes.splitCount > 1 else { return }
    let blocks = Self.rowBlocks(queryHeads * shape.queryLength)
    try kernel.module.launch(.merge, blocks: blocks, outputParameters(), on: stream)
  }

  // MARK: Arguments

  private var queryKeyRotation: Int32 {
    Self.rotation(shape.headDimension, recipe.rotatesQueryAndKey)
  }
  private var valueRotation: Int32 { Self.rotation(shape.valueDimension, recipe.rotatesValue) }

  /// What multiplies the products of codes: scale, log2(e), and 1/p of the rotation.
  private var logitUnit: Float {
    kernel.descriptor.softmaxScale * Self.log2e / Float(queryKeyRotation)
  }

  // MARK: Pre-pass

  private func survey() throws(AttentionError) {
    let isInteger = kernel.method.hasIntegerProducts
    for (index, operand, format, sums, maxima) in [
      (0, query, recipe.query, recipe.centersKey ? layout.querySums : nil, nil),
      (1, key, recipe.key, recipe.centersKey ? layout.keySums : nil, nil),
      (2, value, recipe.value, nil, isInteger ? layout.maxima : nil),
    ] as [(Int, Operand, OperandFormat, Int?, Int?)] {
      var p = intfa_cuda_survey()
      p.rows = operand.rows
      p.limit = InputCheck.limit(for: format)
      p.tensor = Int32(index)
      p.rotation = valueRotation
      p.maxima_pitch = Int32(layout.pitch)
      p.status = place(layout.status)
      p.sums = sums.map(place) ?? 0
      p.maxima = maxima.map(place) ?? 0
      let unit = Int(INTFA_CUDA_SUM_BLOCK)
      let blocks = Int(p.rows.heads) * ((Int(p.rows.tokens) + unit - 1) / unit)
      try kernel.module.launch(.survey, blocks: blocks, p, on: stream)
    }
  }

  private func findMeans() throws(AttentionError) {
    var p = intfa_cuda_mean()
    p.dimension = Int32(shape.headDimension)
    p.rotation = queryKeyRotation
    p.heads = Int32(keyHeads)
    p.tokens = Int32(shape.keyValueLength)
    p.sums = place(layout.keySums)
    p.mean = place(layout.keyMean)
    try kernel.module.launch(.means, blocks: keyHeads, p, on: stream)
    p.heads = Int32(queryHeads)
    p.tokens = Int32(shape.queryLength)
    p.sums = place(layout.querySums)
    p.mean = place(layout.queryMean)
    p.rotated_mean = place(layout.rotatedQueryMean)
    try kernel.module.launch(.means, blocks: queryHeads, p, on: stream)
  }

  private func quantizeValues() throws(AttentionError) {
    let isFolded: Int32 = recipe.valueScale == .foldedReciprocal ? 1 : 0
    var scales = intfa_cuda_value_scales()
    scales.heads = Int32(keyHeads)
    scales.tokens = Int32(shape.keyValueLength)
    scales.pitch = Int32(layout.pitch)
    scales.folded = isFolded
    scales.maxima = place(layout.maxima)
    scales.results = place(layout.valueHeads)
    try kernel.module.launch(.valueScales, blocks: keyHeads, scales, on: stream)
    var p = intfa_cuda_value_codes()
    p.rows = value.rows
    p.rotation = valueRotation
    p.folded = isFolded
    p.code_pitch = Int32(sizes.dimension)
    p.pitch = Int32(layout.pitch)
    p.maxima = place(layout.maxima)
    p.results = place(layout.valueHeads)
    p.codes = place(layout.value)
    p.weights = place(layout.weights)
    p.real_weights = place(layout.realWeights)
    p.fold = place(layout.fold)
    let blocks = keyHeads * layout.pitch / Int(INTFA_CUDA_VALUE_BLOCK)
    try kernel.module.launch(.valueCodes, blocks: blocks, p, on: stream)
  }

  private func quantizeKeys() throws(AttentionError) {
    var p = intfa_cuda_quantize()
    p.rows = key.rows
    p.rotation = queryKeyRotation
    p.code_pitch = Int32(sizes.dimension)
    p.code_rows = p.rows.tokens
    p.scale_pitch = Int32(layout.pitch)
    p.group = Int32(shape.groupSize)
    p.pack = 1
    p.scale_factor = 1
    p.pairs = sizes.family == .sm80 ? 1 : 0
    p.bias_factor = logitUnit
    p.codes = place(layout.key)
    p.scales = place(layout.keyScales)
    p.fold = place(layout.fold)
    p.biases = place(layout.biases)
    if recipe.centersKey { p.mean = place(layout.keyMean) }
    if recipe.queryCentering == .head { p.bias_means = place(layout.rotatedQueryMean) }
    let blocks = Self.rowBlocks(keyHeads * shape.keyValueLength)
    try kernel.module.launch(.quantizeRows, blocks: blocks, p, on: stream)
  }

  private func quantizeQueries() throws(AttentionError) {
    var p = intfa_cuda_quantize()
    p.rows = query.rows
    p.rotation = queryKeyRotation
    p.code_pitch = Int32(sizes.dimension)
    p.code_rows = p.rows.tokens
    p.scale_pitch = Int32(shape.queryLength)
    p.pack = 1
    p.scale_factor = logitUnit
    p.codes = place(layout.query)
    p.scales = place(layout.queryScales)
    if recipe.queryCentering == .head { p.mean = place(layout.queryMean) }
    if recipe.centersKey, logSumExp != nil {
      p.shift_group = Int32(shape.groupSize)
      p.shift_factor = kernel.descriptor.softmaxScale
      p.shift_means = place(layout.keyMean)
      p.shifts = place(layout.shifts)
    }
    let blocks = Self.rowBlocks(queryHeads * shape.queryLength)
    try kernel.module.launch(.quantizeRows, blocks: blocks, p, on: stream)
  }

  /// Whether the loop on 16-bit floats can read an operand where it lies.
  private func isReady(_ operand: Operand) -> Bool {
    kernel.method == .float(operand.elementType) && operand.shape[3] == sizes.dimension
      && operand.strides == TensorGeometry.contiguousStrides(operand.shape, operand.elementType)
      && operand.address.isMultiple(of: 16)
  }

  private func convert(_ operand: Operand, to offset: Int) throws(AttentionError) {
    guard case .float(let type) = kernel.method else { return }
    var p = intfa_cuda_convert()
    p.rows = operand.rows
    p.pitch = Int32(sizes.dimension)
    p.format = type.deviceFormat
    p.target = place(offset)
    let blocks = Self.rowBlocks(Int(p.rows.heads) * Int(p.rows.tokens))
    try kernel.module.launch(.convertRows, blocks: blocks, p, on: stream)
  }

  // MARK: Tile loop

  private func outputParameters() -> intfa_cuda_output {
    var p = intfa_cuda_output()
    p.rows = output.rows
    if let logSumExp {
      p.log_sum_exp = logSumExp.address
      p.log_sum_exp_batch_stride = Int64(logSumExp.strides[0])
      p.log_sum_exp_head_stride = Int64(logSumExp.strides[1])
      p.log_sum_exp_token_stride = Int64(logSumExp.strides[2])
      if recipe.centersKey { p.shifts = place(layout.shifts) }
    }
    if kernel.method.hasIntegerProducts { p.value_heads = place(layout.valueHeads) }
    p.group = Int32(shape.groupSize)
    p.rotation = valueRotation
    p.log2_levels = kernel.method.log2Levels
    p.splits = Int32(sizes.splitCount)
    p.partials = place(layout.partials)
    p.references = place(layout.references)
    p.totals = place(layout.totals)
    p.partial_pitch = Int32(sizes.dimension)
    p.pack = 1
    return p
  }

  private var visible: intfa_cuda_visible {
    let seen = kernel.descriptor.options.mask.visibility(
      queryLength: shape.queryLength,
      keyValueLength: shape.keyValueLength
    )
    return intfa_cuda_visible(
      first: Int32(seen.first),
      end: Int32(seen.end),
      step: Int32(seen.step),
      rows_per_step: 1
    )
  }

  private func attend() throws(AttentionError) {
    if kernel.method.hasIntegerProducts {
      let parameters = integerParameters()
      guard sizes.family == .sm90 else { return try launchAttend(parameters) }
      try launchAttend(mapped(parameters))
    } else {
      var p = intfa_cuda_attention_16()
      p.output = outputParameters()
      p.visible = visible
      p.key_heads = Int32(keyHeads)
      p.key_tokens = Int32(shape.keyValueLength)
      p.split_tiles = Int32(sizes.tilesPerSplit)
      p.scale = kernel.descriptor.softmaxScale * Self.log2e
      p.query = isReady(query) ? query.address : place(layout.query)
      p.key = isReady(key) ? key.address : place(layout.key)
      p.value = isReady(value) ? value.address : place(layout.value)
      try launchAttend(p)
    }
  }

  private func integerParameters() -> intfa_cuda_attention {
    var p = intfa_cuda_attention()
    p.output = outputParameters()
    p.visible = visible
    p.key_heads = Int32(keyHeads)
    p.key_tokens = Int32(shape.keyValueLength)
    p.pitch = Int32(layout.pitch)
    p.key_rows = p.key_tokens
    p.split_tiles = Int32(sizes.tilesPerSplit)
    p.running_maximum = recipe.reference == .runningMaximum ? 1 : 0
    p.refines = recipe.refinesLastTile && p.visible.step > 0 ? 1 : 0
    p.query = place(layout.query)
    p.query_scales = place(layout.queryScales)
    p.key = place(layout.key)
    p.key_scales = place(layout.keyScales)
    p.biases = place(layout.biases)
    p.value = place(layout.value)
    p.weights = place(layout.weights)
    p.real_weights = place(layout.realWeights)
    return p
  }

  /// The parameters with descriptions of the codes for the copy engine.
  private func mapped(
    _ parameters: intfa_cuda_attention
  ) throws(AttentionError) -> intfa_cuda_attention_sm90 {
    var p = intfa_cuda_attention_sm90()
    p.attention = parameters
    let width = sizes.dimension
    // Rows of a box are as long as the span of the swizzle.
    let span = min(width, 128)
    p.query_map.words = try stream.context.tensorMap(
      place(layout.query),
      width: width,
      height: queryHeads * shape.queryLength,
      box: (span, sizes.queryBlockLength)
    )
    p.key_map.words = try stream.context.tensorMap(
      place(layout.key),
      width: width,
      height: max(keyHeads * shape.keyValueLength, 1),
      box: (span, sizes.tileLength)
    )
    p.value_map.words = try stream.context.tensorMap(
      place(layout.value),
      width: max(layout.pitch, 128),
      height: keyHeads * width,
      box: (min(sizes.tileLength, 128), width)
    )
    return p
  }

  private func launchAttend<Parameters>(_ parameters: Parameters) throws(AttentionError) {
    try kernel.module.launch(
      .attend,
      blocks: sizes.blockCount,
      splits: sizes.splitCount,
      threads: sizes.threadCount,
      sharedByteCount: sizes.sharedByteCount,
      parameters,
      on: stream
    )
  }
}
