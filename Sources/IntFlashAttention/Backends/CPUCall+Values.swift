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

  /// The scales of the values, where the recipe has integers, from what the survey found.
  func findValueScales() {
    guard kernel.method.hasIntegerValues else { return }
    if kernel.method.isTiled, recipe.queryCentering == .none {
      unsafe place(layout.biases).update(repeating: 0, count: shape.keyValueLength)
    }
    forEachItem(kernel.keyHeadCount) { head, _ in
      if kernel.method.isTiled {
        foldValueScales(head: head)
      } else {
        // One scale per head, as the paper has it.
        let multiplier = 127 / max(largestMagnitude(.value, head: head), HeadCodes.smallestMaximum)
        unsafe place(layout.valueMultipliers, head)
          .update(repeating: multiplier, count: shape.keyValueLength)
      }
    }
  }

  /// The rule for the scales of one head; log2 of them rides on the logits.
  private func foldValueScales(head: Int) {
    var fold = unsafe intfa_fold()
    unsafe fold.maxima = UnsafePointer(place(layout.valueMaxima, head))
    unsafe fold.count = Int64(shape.keyValueLength)
    unsafe fold.integers = recipe.valueScale == .foldedReciprocal
    unsafe fold.multipliers = place(layout.valueMultipliers, head)
    unsafe fold.weights = place(layout.weights, head, as: Int8.self)
    unsafe fold.real_weights = place(layout.realWeights, head)
    unsafe fold.logarithms = place(layout.folds, head)
    unsafe intfa_fold_values(&fold)
    var flags: ValueFlags = []
    if unsafe fold.has_integers { flags.insert(.hasIntegerWeights) }
    if unsafe fold.has_outlier { flags.insert(.hasOutlier) }
    unsafe place(layout.valueFlags, as: ValueFlags.self)[head] = flags
    unsafe place(layout.valueUnits)[head] = unsafe fold.unit
  }

  /// Codes of one piece of the values.
  func quantizeValues(head: Int, piece: Int, seat: Int) {
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
