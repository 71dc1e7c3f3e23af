internal import CAttentionKernels

extension CPUCall {
  /// What `FoldedValueScales` decided for a key/value head.
  struct ValueFlags: OptionSet, BitwiseCopyable {
    let rawValue: UInt8
    static let hasIntegerWeights = ValueFlags(rawValue: 1)
    static let hasOutlier = ValueFlags(rawValue: 2)
  }

  func valueFlags(_ head: Int) -> ValueFlags {
    unsafe place(layout.valueFlags, as: ValueFlags.self)[head]
  }

  /// Codes of the values, where the recipe has integers, and everything that rides on the logits.
  func quantizeValues() {
    guard kernel.method.hasIntegerValues else {
      packRunning(.value)
      return
    }
    if kernel.method.isTiled {
      findValueMaxima()
      forEachItem(kernel.keyHeadCount) { head, _ in foldValueScales(head: head) }
    } else {
      forEachItem(kernel.keyHeadCount) { head, _ in
        // One scale per head, as the paper has it.
        let multiplier = 127 / max(largestMagnitude(.value, head: head), HeadCodes.smallestMaximum)
        let multipliers = unsafe place(layout.valueMultipliers, head)
        for token in 0..<shape.keyValueLength { unsafe multipliers[token] = multiplier }
      }
    }
    forEachItem(kernel.keyHeadCount * kernel.keyPieceCount) { item, seat in
      let (head, piece) = item.quotientAndRemainder(dividingBy: kernel.keyPieceCount)
      quantizeValues(head: head, piece: piece, seat: seat)
    }
  }

  private func findValueMaxima() {
    forEachItem(kernel.keyHeadCount * kernel.keyPieceCount) { item, _ in
      let (head, piece) = item.quotientAndRemainder(dividingBy: kernel.keyPieceCount)
      let range = pieceRows(piece, of: shape.keyValueLength)
      var source = unsafe rows(operands.value, head: head)
      unsafe kernels.rotated_maxima(
        &source,
        range.begin,
        range.end,
        Int32(shape.valueDimension),
        recipe.rotatesValue,
        place(layout.valueMaxima, head) + Int(range.begin)
      )
    }
  }

  /// The rule for the scales of one head, and log2 of them into the biases of its query heads.
  private func foldValueScales(head: Int) {
    let count = shape.keyValueLength
    let maxima = unsafe UnsafeBufferPointer(start: place(layout.valueMaxima, head), count: count)
    let scales = unsafe FoldedValueScales(
      maxima: Array(maxima),
      integers: recipe.valueScale == .foldedReciprocal
    )
    let multipliers = unsafe place(layout.valueMultipliers, head)
    let weights = unsafe place(layout.weights, head, as: Int8.self)
    let realWeights = unsafe place(layout.realWeights, head)
    var flags: ValueFlags = []
    if scales.isInteger { flags.insert(.hasIntegerWeights) }
    if scales.hasOutlier { flags.insert(.hasOutlier) }
    unsafe place(layout.valueFlags, as: ValueFlags.self)[head] = flags
    unsafe place(layout.valueUnits)[head] = scales.unit
    let logarithms = scales.reciprocals.map { -64 * FoldedValueScales.logarithm($0) }
    for token in 0..<count {
      unsafe multipliers[token] = scales.multiplier(token)
      if scales.isInteger {
        unsafe weights[token] = Int8(scales.reciprocals[token])
      } else {
        unsafe realWeights[token] = scales.reciprocals[token]
      }
    }
    let isCapped = kernel.descriptor.options.softcap != nil
    if isCapped {
      let folds = unsafe place(layout.folds, head)
      for token in 0..<count { unsafe folds[token] = logarithms[token] }
    }
    for member in 0..<shape.groupSize {
      let biases = unsafe place(layout.biases, head * shape.groupSize + member)
      if recipe.queryCentering == .none {
        for token in 0..<count { unsafe biases[token] = 0 }
      }
      guard !isCapped else { continue }
      for token in 0..<count { unsafe biases[token] += logarithms[token] }
    }
  }

  private func quantizeValues(head: Int, piece: Int, seat: Int) {
    let range = pieceRows(piece, of: shape.keyValueLength)
    let dimension = shape.valueDimension
    let codes = unsafe place(layout.codes, seat: seat, as: Int8.self)
    var arguments = unsafe intfa_quantize()
    unsafe arguments.rows = rows(operands.value, head: head)
    unsafe arguments.begin = range.begin
    unsafe arguments.end = range.end
    unsafe arguments.dimension = Int32(dimension)
    unsafe arguments.rotates = recipe.rotatesValue
    unsafe arguments.multipliers = UnsafePointer(place(layout.valueMultipliers, head))
    unsafe arguments.codes = codes
    unsafe kernels.quantize(&arguments)
    guard kernel.method.isTiled else {
      unsafe packRunning(.value, head: head, range, codes: codes)
      return
    }
    var packing = unsafe packing(codes, range, dimension, layout.valueCodes, head: head)
    unsafe packing.int4 = kernel.method.hasInt4Value
    if valueFlags(head).contains(.hasIntegerWeights) {
      unsafe packing.weights = UnsafePointer(place(layout.weights, head, as: Int8.self))
      unsafe packing.target_weights = place(layout.packedWeights, head, as: Int8.self)
    }
    unsafe kernels.pack_values(&packing)
  }
}

extension ElementType {
  /// What the kernels call a floating-point operand's storage.
  var kernelFormat: intfa_format {
    switch self {
    case .float16: INTFA_FLOAT16
    case .bfloat16: INTFA_BFLOAT16
    case .float32, .float8, .int8, .int4: INTFA_FLOAT32
    }
  }
}
