// Names are those of the header, which documents them.
// swift-format-ignore-file: AlwaysUseLowerCamelCase, AllPublicDeclarationsHaveDocumentation
public import CIntFlashAttention
import IntFlashAttention

@c @implementation
public func intfa_merge(
  _ outputs: UnsafePointer<UnsafePointer<intfa_tensor>?>!,
  _ log_sum_exps: UnsafePointer<UnsafePointer<intfa_tensor>?>!,
  _ part_count: Int64,
  _ output: UnsafePointer<intfa_tensor>!,
  _ log_sum_exp: UnsafePointer<intfa_tensor>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let count = try checkedCount(part_count, "part_count")
    let output = unsafe try CTensor.operand(output, "output").batched("output", rank: 4)
    let sums = unsafe try CTensor.operand(log_sum_exp, "log_sum_exp")
      .batched("log_sum_exp", rank: 3)
    try CTensor.requireOutput(output, "output", shape: output.shape)
    try CTensor.requireOutput(sums, "log_sum_exp", shape: Array(output.shape.dropLast()))
    guard sums.elementType == .float32 else {
      throw AttentionError(
        .unsupportedElementType,
        "log_sum_exp is \(sums.elementType.rawValue); it must be float32"
      )
    }
    try OverlapCheck.requireDisjoint(output.view, "output", sums.view, "log_sum_exp")

    // Beside the outputs, which stay as they are until every part has been found right.
    var merged = try Tensor(.float32, shape: output.shape)
    let nothing = [Float](repeating: -.infinity, count: sums.shape.reduce(1, *))
    var mergedSums = try Tensor(nothing, shape: sums.shape)
    for index in 0..<count {
      let outputs = unsafe try require(outputs, "outputs")
      let partSums = unsafe try require(log_sum_exps, "log_sum_exps")
      let part = unsafe try CTensor.operand(outputs[index], "outputs[\(index)]")
        .batched("outputs[\(index)]", rank: 4)
      guard part.shape == output.shape else {
        throw AttentionError(
          .shapeMismatch,
          "outputs[\(index)] has shape \(part.shape), but output has \(output.shape)"
        )
      }
      let partSum = unsafe try CTensor.operand(partSums[index], "log_sum_exps[\(index)]")
        .batched("log_sum_exps[\(index)]", rank: 3)
      do throws(AttentionError) {
        try mergeAttention(
          part.view,
          logSumExp: partSum.view,
          into: merged.mutableView,
          logSumExp: mergedSums.mutableView
        )
      } catch {
        throw AttentionError(error.code, "part \(index): \(error.message)")
      }
    }
    CTensor.write(merged.view, to: output)
    CTensor.write(mergedSums.view, to: sums)
  }
}

/// The largest number of things that a call takes: so a count that was never set reads no memory.
private let largestCount: Int64 = 1 << 20

/// A number of things that the caller passes side by side.
func checkedCount(_ count: Int64, _ name: String) throws(AttentionError) -> Int {
  guard (0...largestCount).contains(count) else {
    throw AttentionError(
      .invalidArgument,
      "\(name) is \(count); it must be between 0 and \(largestCount)"
    )
  }
  return Int(count)
}
