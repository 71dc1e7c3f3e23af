internal import CAttentionKernels

/// The check of operands that are not those of a plan.
enum CPUSurvey {
  /// Rows of a head of an operand with a batch of one, from token `token` on.
  static func rows(_ operand: AttentionOperands.Operand, head: Int, from token: Int) -> intfa_rows {
    let offset = head * operand.strides[1] + token * operand.strides[2]
    let bytes = operand.elementType.bitWidth / 8
    return unsafe intfa_rows(
      base: UnsafeRawPointer(operand.base + offset * bytes),
      stride: Int64(operand.strides[2]),
      format: operand.elementType.kernelFormat
    )
  }

  /// The largest magnitude of all elements.
  ///
  /// - Throws: `AttentionError` with code `.nonFiniteInput` or `.valueOutOfRange`.
  static func largest(
    of operand: AttentionOperands.Operand,
    _ tensor: InputCheck.Tensor,
    _ format: OperandFormat,
    _ kernels: intfa_cpu_kernels
  ) throws(AttentionError) -> Float {
    let (heads, tokens, dimension) = (operand.shape[1], operand.shape[2], operand.shape[3])
    let limit = InputCheck.limit(for: format)
    // Rows that a call takes lie evenly apart: a head's tokens, or a token's heads.
    let isByHead = tokens >= heads
    var largest: Float = 0
    for outer in 0..<(isByHead ? heads : tokens) {
      var (found, firstBad) = (Float(0), Int64(-1))
      var rows = unsafe rows(operand, head: isByHead ? outer : 0, from: isByHead ? 0 : outer)
      if !isByHead { unsafe rows.stride = Int64(operand.strides[1]) }
      unsafe withUnsafeMutablePointer(to: &found) { found in
        unsafe withUnsafeMutablePointer(to: &firstBad) { firstBad in
          var arguments = unsafe intfa_survey()
          unsafe arguments.rows = rows
          unsafe arguments.end = Int64(isByHead ? tokens : heads)
          unsafe arguments.dimension = Int32(dimension)
          unsafe arguments.limit = limit
          unsafe arguments.largest = found
          unsafe arguments.first_bad = firstBad
          unsafe kernels.survey(&arguments)
        }
      }
      largest = max(largest, found)
      guard firstBad >= 0 else { continue }
      let (head, token) = isByHead ? (outer, Int(firstBad)) : (Int(firstBad), outer)
      throw InputCheck.error(
        tensor,
        batch: 0,
        head: head,
        token: token,
        row: (0..<dimension).map { operand.view[0, head, token, $0] }[...],
        limit: limit
      )
    }
    return largest
  }
}
