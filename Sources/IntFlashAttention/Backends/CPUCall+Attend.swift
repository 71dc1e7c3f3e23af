internal import CAttentionKernels

extension CPUCall {
  /// One block of query rows of one head, and the memory of the thread that works on it.
  @safe
  struct Block {
    let head: Int
    let begin: Int
    let rows: Int
    let seat: Int
    let visible: intfa_visible
    let mask: UnsafePointer<intfa_key_mask>?
    /// The number of the query block.
    let index: Int
  }

  /// The tile loop: one item per query head and block, under a causal mask the longest of a head first.
  func attend() {
    // Head after head, so that the keys and values of one stay in the second-level cache.
    forEachItem(kernel.attendItemCount) { item, seat in
      let (head, index) = item.quotientAndRemainder(dividingBy: kernel.queryBlockCount)
      let range = kernel.tileSizes.queryRows(ofBlock: index, queryLength: shape.queryLength)
      let begin = range.lowerBound
      let seen = kernel.descriptor.options.mask.visibility(
        queryLength: shape.queryLength,
        keyValueLength: shape.keyValueLength
      )
      let block = unsafe Block(
        head: head,
        begin: begin,
        rows: range.count,
        seat: seat,
        visible: intfa_visible(
          first: Int64(seen.first + begin * seen.step),
          end: Int64(seen.end + begin * seen.step),
          step: Int64(seen.step),
          least_end: Int64(seen.leastEnd),
          rows_per_step: 1
        ),
        mask: keyMask(head: head, firstRow: begin, rows: range.count, seat: seat),
        index: index
      )
      prepareQueries(block)
      attend(block)
      finish(block)
    }
  }

  // MARK: Queries

  private func prepareQueries(_ block: Block) {
    let head = block.head
    let source = unsafe rows(operands.query, head: head)
    let scales = unsafe place(layout.queryScales, seat: block.seat)
    unsafe findRowShifts(block, source)
    switch kernel.method {
    case .tiles, .running(.int8, _):
      var arguments = unsafe intfa_quantize()
      unsafe arguments.rows = source
      unsafe arguments.begin = Int64(block.begin)
      unsafe arguments.end = Int64(block.begin + block.rows)
      unsafe arguments.dimension = Int32(shape.headDimension)
      unsafe arguments.rotates = recipe.rotatesQueryAndKey
      if recipe.queryCentering == .head {
        unsafe arguments.mean = UnsafePointer(place(layout.queryMeans, head))
      }
      unsafe arguments.codes = place(layout.queryCodes, seat: block.seat, as: Int8.self)
      unsafe arguments.scales = scales
      unsafe kernels.quantize(&arguments)
      for row in 0..<block.rows { unsafe scales[row] *= logitUnit }
    case .running(.float(let format), _):
      // The tile loop rounds the rows itself.
      let multiplier = operandMultiplier(format, .query, head: head)
      let keyMultiplier = operandMultiplier(format, .key, head: keyHead(ofQueryHead: head))
      let scale = logitUnit / multiplier / keyMultiplier
      for row in 0..<block.rows { unsafe scales[row] = scale }
    }
  }

  /// q · kbar per row: what centring the keys took out of the logits.
  ///
  /// A cap and the log-sum-exp need
  /// it back; the softmax itself does not.
  private func findRowShifts(_ block: Block, _ source: intfa_rows) {
    let isCapped = kernel.descriptor.options.softcap != nil
    guard isCapped || operands.logSumExp != nil || operands.sinks != nil else { return }
    let shifts = unsafe place(layout.rowShifts, seat: block.seat)
    let scaled = unsafe place(layout.scaledShifts, seat: block.seat)
    let queries = unsafe place(layout.queryRows, seat: block.seat)
    let dimension = Int32(shape.headDimension)
    guard recipe.centersKey else {
      for row in 0..<block.rows {
        unsafe shifts[row] = 0
        unsafe scaled[row] = 0
      }
      return
    }
    var source = unsafe source
    unsafe intfa_load_rows(
      &source,
      Int64(block.begin),
      Int64(block.begin + block.rows),
      dimension,
      1,
      INTFA_FLOAT32,
      queries
    )
    let mean = unsafe place(layout.keyMeans, keyHead(ofQueryHead: block.head))
    for row in 0..<block.rows {
      let product = unsafe intfa_dot(queries + row * shape.headDimension, mean, dimension)
      unsafe shifts[row] = kernel.descriptor.softmaxScale * product
      unsafe scaled[row] = shifts[row] * Self.log2e * kernel.method.logitSteps
    }
  }

  // MARK: Tiles

  /// Spans in key order: each is accumulated by itself and merged into what came before.
  private func attend(_ block: Block) {
    let keys = shape.keyValueLength
    let first = min(max(Int(block.visible.first), 0), keys)
    let lastEnd = Int(block.visible.end) + (block.rows - 1) * Int(block.visible.step)
    let end = max(lastEnd, Int(block.visible.least_end))
    let seen = first..<max(min(end, keys), first)
    clear(block, part: 0)
    var index = 0
    while let span = recipe.span(index, keyValueLength: keys) {
      let part = min(index, 1)
      index += 1
      let wanted = seen.clamped(to: span)
      guard !wanted.isEmpty else { continue }
      if part == 1 { clear(block, part: 1) }
      let start = recipe.tileStart(of: wanted.lowerBound, tileLength: tileLength(block))
      forEachShownRange(
        of: start..<wanted.upperBound,
        head: block.head,
        block: block.index,
        tileLength: tileLength(block)
      ) { range in
        switch kernel.method {
        case .tiles: attendTiles(block, range, part: part)
        case .running: attendRunning(block, range, part: part)
        }
      }
      if part == 1 { merge(block) }
    }
    guard operands.sinks != nil else { return }
    clear(block, part: 1)
    if writeSink(head: block.head, rows: block.rows, seat: block.seat) { merge(block) }
  }

  /// Keys of every tile but the first.
  private func tileLength(_ block: Block) -> Int {
    guard kernel.method.isTiled else { return recipe.tileLength }
    let flags = valueFlags(keyHead(ofQueryHead: block.head))
    return recipe.tileLength(hasOutlier: flags.contains(.hasOutlier))
  }

  private func clear(_ block: Block, part: Int) {
    let out = unsafe place(layout.out, seat: block.seat, part: part)
    let total = unsafe place(layout.total, seat: block.seat, part: part)
    let reference = unsafe place(layout.reference, seat: block.seat, part: part)
    let start: Float = kernel.method.isTiled ? -.infinity : -1e30
    // Kernels may work on whole groups of rows.
    let rows = CPUTileSizes.padded(block.rows, to: Int(INTFA_ROW_UNIT))
    unsafe out.update(repeating: 0, count: rows * layout.outStride)
    unsafe total.update(repeating: 0, count: rows)
    unsafe reference.update(repeating: start, count: rows)
  }

  var kernelSoftcap: Float {
    (kernel.descriptor.options.softcap ?? 0) * Self.log2e * kernel.method.logitSteps
  }

  private func attendTiles(_ block: Block, _ keys: Range<Int>, part: Int) {
    let (head, shared, seat) = (block.head, keyHead(ofQueryHead: block.head), block.seat)
    var arguments = unsafe intfa_attend_tiles()
    unsafe arguments.rows = Int32(block.rows)
    unsafe arguments.head_dimension = Int32(shape.headDimension)
    unsafe arguments.value_dimension = Int32(shape.valueDimension)
    unsafe arguments.key_begin = Int64(keys.lowerBound)
    unsafe arguments.key_end = Int64(keys.upperBound)
    unsafe arguments.first_tile = Int32(recipe.firstTileLength)
    unsafe arguments.tile = Int32(tileLength(block))
    unsafe arguments.visible = block.visible
    unsafe arguments.refines = recipe.refinesLastTile
    unsafe arguments.mask = block.mask
    unsafe arguments.query = UnsafePointer(place(layout.queryCodes, seat: seat, as: Int8.self))
    unsafe arguments.query_scale = UnsafePointer(place(layout.queryScales, seat: seat))
    unsafe arguments.key = UnsafeRawPointer(place(layout.keyCodes, shared, as: UInt8.self))
    unsafe arguments.int4_key = kernel.method.hasInt4Key
    unsafe arguments.value = UnsafeRawPointer(place(layout.valueCodes, shared, as: UInt8.self))
    unsafe arguments.int4_value = kernel.method.hasInt4Value
    unsafe arguments.key_scale = UnsafePointer(place(layout.keyScales, shared))
    unsafe arguments.bias = UnsafePointer(biases(head))
    unsafe arguments.sums_codes = !valueFlags(shared).contains(.hasOutlier)
    if valueFlags(shared).contains(.hasIntegerWeights) {
      unsafe arguments.weight = UnsafePointer(place(layout.weights, shared, as: Int8.self))
    } else {
      unsafe arguments.real_weight = UnsafePointer(place(layout.realWeights, shared))
    }
    if kernel.descriptor.options.softcap != nil {
      unsafe arguments.softcap = kernelSoftcap
      unsafe arguments.row_shift = UnsafePointer(place(layout.scaledShifts, seat: seat))
      unsafe arguments.fold = UnsafePointer(place(layout.folds, shared))
    }
    unsafe arguments.out = place(layout.out, seat: seat, part: part)
    unsafe arguments.out_stride = Int64(layout.outStride)
    unsafe arguments.total = place(layout.total, seat: seat, part: part)
    unsafe arguments.reference = place(layout.reference, seat: seat, part: part)
    unsafe arguments.scratch = UnsafeMutableRawPointer(
      place(layout.scratch, seat: seat, as: UInt8.self)
    )
    unsafe kernels.attend_tiles(&arguments)
  }

  /// What is added to the logits of a query head's row before a cap.
  private func biases(_ head: Int) -> UnsafeMutablePointer<Float> {
    if recipe.queryCentering == .head { return unsafe place(layout.biases, head) }
    return unsafe kernel.descriptor.options.softcap == nil
      ? place(layout.folds, keyHead(ofQueryHead: head)) : place(layout.biases)
  }

  private func merge(_ block: Block) {
    let seat = block.seat
    var arguments = unsafe intfa_merge()
    unsafe arguments.rows = Int32(block.rows)
    unsafe arguments.value_dimension = Int32(shape.valueDimension)
    unsafe arguments.steps = kernel.method.logitSteps
    unsafe arguments.out_stride = Int64(layout.outStride)
    unsafe arguments.into_out = place(layout.out, seat: seat, part: 0)
    unsafe arguments.into_total = place(layout.total, seat: seat, part: 0)
    unsafe arguments.into_reference = place(layout.reference, seat: seat, part: 0)
    unsafe arguments.from_out = UnsafePointer(place(layout.out, seat: seat, part: 1))
    unsafe arguments.from_total = UnsafePointer(place(layout.total, seat: seat, part: 1))
    unsafe arguments.from_reference = UnsafePointer(place(layout.reference, seat: seat, part: 1))
    unsafe kernels.merge(&arguments)
  }

  // MARK: Output

  /// What the normalised sum is multiplied by: the part of V's scale that was not folded.
  private func outputFactor(_ shared: Int) -> Float {
    switch kernel.method {
    case .tiles:
      let unit = unsafe place(layout.valueUnits)[shared]
      let block = HadamardRotation(dimension: shape.valueDimension).blockLength
      return recipe.rotatesValue ? unit / Float(block) : unit
    case .running(_, .int8):
      // P has 127 levels and the row sum none.
      return max(largestMagnitude(.value, head: shared), HeadCodes.smallestMaximum) / 127 / 127
    case .running(_, .float(let format, _)):
      return 1 / operandMultiplier(format, .value, head: shared)
    }
  }

  private func finish(_ block: Block) {
    let seat = block.seat
    let (batch, index) = block.head.quotientAndRemainder(dividingBy: shape.queryHeadCount)
    let target = unsafe rows(operands.output, head: block.head)
    let bytes = operands.output.elementType.bitWidth / 8
    var arguments = unsafe intfa_finish()
    unsafe arguments.rows = Int32(block.rows)
    unsafe arguments.value_dimension = Int32(shape.valueDimension)
    unsafe arguments.rotates = recipe.rotatesValue
    unsafe arguments.factor = outputFactor(keyHead(ofQueryHead: block.head))
    unsafe arguments.steps = kernel.method.logitSteps
    unsafe arguments.total_unit = kernel.method.isTiled ? 255 : 1
    unsafe arguments.out = place(layout.out, seat: seat, part: 0)
    unsafe arguments.out_stride = Int64(layout.outStride)
    unsafe arguments.total = UnsafePointer(place(layout.total, seat: seat, part: 0))
    unsafe arguments.reference = UnsafePointer(place(layout.reference, seat: seat, part: 0))
    unsafe arguments.target =
      UnsafeMutableRawPointer(mutating: target.base)
      + block.begin * operands.output.strides[2] * bytes
    unsafe arguments.target_stride = target.stride
    unsafe arguments.target_format = target.format
    if let logSumExp = operands.logSumExp {
      let strides = logSumExp.strides
      let offset = batch * strides[0] + index * strides[1] + block.begin * strides[2]
      unsafe arguments.log_sum_exp =
        logSumExp.base.assumingMemoryBound(to: Float.self) + offset
      unsafe arguments.log_sum_exp_stride = Int64(strides[2])
      // A cap sees the shift itself, so that its logits are already the unshifted ones.
      if kernel.descriptor.options.softcap == nil {
        unsafe arguments.row_shift = UnsafePointer(place(layout.rowShifts, seat: seat))
      }
    }
    unsafe kernels.finish(&arguments)
  }
}
