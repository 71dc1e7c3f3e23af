internal import CAttentionKernels

/// The merge of normalised outputs, head by head.
enum CPUMerge {
  /// Adds a part to what was merged so far; the operands are checked.
  static func add(
    part: AttentionOperands.Operand,
    logSumExp partSums: AttentionOperands.Operand,
    to target: AttentionOperands.Operand,
    _ sums: AttentionOperands.Operand
  ) {
    ThreadPool.shared.run(itemCount: part.shape[0] * part.shape[1]) { head, _ in
      var arguments = unsafe intfa_merge_parts()
      unsafe arguments.rows = Int64(part.shape[2])
      unsafe arguments.dimension = Int32(part.shape[3])
      unsafe arguments.part = part.rows(head: head)
      unsafe arguments.part_log_sum_exp = UnsafePointer(partSums.floats(head: head))
      unsafe arguments.part_stride = Int64(partSums.strides[2])
      unsafe arguments.target = UnsafeMutableRawPointer(mutating: target.rows(head: head).base)
      unsafe arguments.target_stride = Int64(target.strides[2])
      unsafe arguments.target_format = target.elementType.kernelFormat
      unsafe arguments.log_sum_exp = sums.floats(head: head)
      unsafe arguments.log_sum_exp_stride = Int64(sums.strides[2])
      unsafe intfa_add_part(&arguments)
    }
  }
}

extension AttentionOperands.Operand {
  private func offset(head: Int) -> Int {
    let (batch, index) = head.quotientAndRemainder(dividingBy: shape[1])
    return batch * strides[0] + index * strides[1]
  }

  /// Rows of one head, numbered batch-major.
  func rows(head: Int) -> intfa_rows {
    unsafe intfa_rows(
      base: UnsafeRawPointer(base + offset(head: head) * elementType.bitWidth / 8),
      stride: Int64(strides[2]),
      format: elementType.kernelFormat
    )
  }

  /// Where the float32 elements of one head begin.
  fileprivate func floats(head: Int) -> UnsafeMutablePointer<Float> {
    unsafe base.assumingMemoryBound(to: Float.self) + offset(head: head)
  }
}
