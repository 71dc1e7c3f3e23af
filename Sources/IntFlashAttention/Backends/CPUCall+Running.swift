internal import CAttentionKernels

/// The loop of the running maximum: its packed operands and its calls.
extension CPUCall {
  // MARK: Keys and values

  /// Packs rows `range` of a head: these codes, or the caller's rows where there are none.
  func packRunning(
    _ tensor: InputCheck.Tensor,
    head: Int,
    _ range: (begin: Int64, end: Int64),
    codes: UnsafeMutablePointer<Int8>?
  ) {
    guard let formats = kernel.method.runningFormats else { return }
    let isKey = tensor == .key
    let operand = isKey ? operands.key : operands.value
    let region = isKey ? layout.keyCodes : layout.valueCodes
    var arguments = unsafe intfa_pack_running()
    unsafe arguments.formats = formats
    unsafe arguments.rows = rows(operand, head: head)
    unsafe arguments.multiplier = operandMultiplier(
      isKey ? recipe.key : recipe.value,
      tensor,
      head: head
    )
    unsafe arguments.codes = UnsafePointer(codes)
    unsafe arguments.begin = range.begin
    unsafe arguments.end = range.end
    unsafe arguments.dimension = Int32(operand.shape[3])
    unsafe arguments.target = UnsafeMutableRawPointer(place(region, head, as: UInt8.self))
    if isKey {
      unsafe kernels.pack_running_keys(&arguments)
    } else {
      unsafe kernels.pack_running_values(&arguments)
    }
  }

  /// What a float operand is multiplied by before it is rounded: 1, or FP8's levels / max.
  func operandMultiplier(
    _ format: OperandFormat,
    _ tensor: InputCheck.Tensor,
    head: Int
  ) -> Float {
    guard case .float8 = format else { return 1 }
    return format.levels / max(largestMagnitude(tensor, head: head), HeadCodes.smallestMaximum)
  }

  // MARK: Tiles

  func attendRunning(_ block: Block, _ keys: Range<Int>, part: Int) {
    guard let formats = kernel.method.runningFormats else { return }
    let (head, shared, seat) = (block.head, keyHead(ofQueryHead: block.head), block.seat)
    var arguments = unsafe intfa_attend_running()
    unsafe arguments.rows = Int32(block.rows)
    unsafe arguments.head_dimension = Int32(shape.headDimension)
    unsafe arguments.value_dimension = Int32(shape.valueDimension)
    unsafe arguments.key_begin = Int64(keys.lowerBound)
    unsafe arguments.key_end = Int64(keys.upperBound)
    unsafe arguments.first_tile = Int32(recipe.firstTileLength)
    unsafe arguments.tile = Int32(recipe.tileLength)
    unsafe arguments.visible = block.visible
    unsafe arguments.mask = block.mask
    unsafe arguments.formats = formats
    unsafe arguments.query_scale = UnsafePointer(place(layout.queryScales, seat: seat))
    unsafe arguments.key = UnsafeRawPointer(place(layout.keyCodes, shared, as: UInt8.self))
    unsafe arguments.value = UnsafeRawPointer(place(layout.valueCodes, shared, as: UInt8.self))
    if kernel.method.hasIntegerScores {
      unsafe arguments.query_codes = UnsafePointer(
        place(layout.queryCodes, seat: seat, as: Int8.self)
      )
      unsafe arguments.key_scale = UnsafePointer(place(layout.keyScales, shared))
      if recipe.queryCentering == .head {
        unsafe arguments.bias = UnsafePointer(place(layout.biases, head))
      }
    } else {
      unsafe arguments.query = rows(operands.query, head: head)
      let offset = block.begin * operands.query.strides[2]
      unsafe arguments.query.base += offset * operands.query.elementType.bitWidth / 8
      unsafe arguments.query_multiplier = operandMultiplier(recipe.query, .query, head: head)
    }
    if kernel.descriptor.options.softcap != nil {
      unsafe arguments.softcap = kernelSoftcap
      unsafe arguments.row_shift = UnsafePointer(place(layout.scaledShifts, seat: seat))
    }
    unsafe arguments.out = place(layout.out, seat: seat, part: part)
    unsafe arguments.out_stride = Int64(layout.outStride)
    unsafe arguments.total = place(layout.total, seat: seat, part: part)
    unsafe arguments.reference = place(layout.reference, seat: seat, part: part)
    unsafe arguments.scratch = UnsafeMutableRawPointer(
      place(layout.scratch, seat: seat, as: UInt8.self)
    )
    unsafe kernels.attend_running(&arguments)
  }
}

extension CPUMethod {
  /// What the loop of the running maximum multiplies; nil for the integer loop.
  var runningFormats: intfa_running_formats? {
    guard case .running(let scores, let values) = self else { return nil }
    let score = if case .float(let format) = scores { format.kernelFormat } else { INTFA_INT8 }
    return switch values {
    case .int8: intfa_running_formats(score: score, value: INTFA_INT8, probability: INTFA_P_INT8)
    case .float(let format, let probability):
      intfa_running_formats(
        score: score,
        value: format.kernelFormat,
        probability: probability.kernelFormat
      )
    }
  }
}

extension OperandFormat {
  /// What the kernels call the format that values are rounded to.
  var kernelFormat: intfa_format {
    switch self {
    case .float16: INTFA_FLOAT16
    case .bfloat16: INTFA_BFLOAT16
    case .float8: INTFA_FLOAT8
    case .float32, .int8, .int4, .int4Clipped, .int4Progressive: INTFA_FLOAT32
    }
  }
}

extension QuantizationRecipe.Probability {
  /// What the kernels of the running maximum call it.
  var kernelFormat: intfa_probability {
    switch self {
    case .float32: INTFA_P_FLOAT32
    case .float16: INTFA_P_FLOAT16
    case .bfloat16: INTFA_P_BFLOAT16
    case .float8: INTFA_P_FLOAT8
    case .signed8, .unsigned8: INTFA_P_INT8
    }
  }
}
