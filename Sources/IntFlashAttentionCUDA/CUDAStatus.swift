internal import CAttentionKernels
import IntFlashAttention

extension CUDAStream {
  /// Starts what the survey of inputs finds: all ones, and zeros for the magnitudes.
  func clearStatus(_ address: UInt64) throws(AttentionError) {
    let size = MemoryLayout<intfa_cuda_status>.size
    let bad = MemoryLayout<intfa_cuda_status>.offset(of: \.largest) ?? size
    try fill(address, 0xFF, byteCount: bad)
    try fill(address + UInt64(bad), 0, byteCount: size - bad)
  }

  /// What the survey found; waits for the stream.
  func status(_ address: UInt64) throws(AttentionError) -> intfa_cuda_status {
    var status = intfa_cuda_status()
    let size = MemoryLayout<intfa_cuda_status>.size
    let result: Result<Void, AttentionError> = unsafe withUnsafeMutableBytes(of: &status) { bytes in
      guard let base = bytes.baseAddress else { return .success(()) }
      do throws(AttentionError) {
        unsafe try download(address, to: base, byteCount: size)
        return .success(try synchronize())
      } catch {
        return .failure(error)
      }
    }
    try result.get()
    return status
  }
}

extension intfa_cuda_status {
  typealias Description = (
    InputCheck.Tensor, _ batch: Int, _ head: Int, _ token: Int
  ) -> AttentionError

  /// Throws for the first refused element, in the words of `describe`, and for logits that overflow.
  func requireAccepted(
    _ descriptor: AttentionDescriptor,
    describe: Description = Self.describe
  ) throws(AttentionError) {
    let shape = descriptor.shape
    let first = [first_bad.0, first_bad.1, first_bad.2]
    for (tensor, (place, operand)) in zip(
      InputCheck.Tensor.allCases,
      zip(first, [shape.queryShape, shape.keyShape, shape.valueShape])
    ) where place != .max {
      let (row, token) = Int(place).quotientAndRemainder(dividingBy: operand[2])
      let (batch, head) = row.quotientAndRemainder(dividingBy: operand[1])
      throw describe(tensor, batch, head, token)
    }
    try InputCheck.requireLogits(
      largestQuery: Float(bitPattern: largest.0),
      largestKey: Float(bitPattern: largest.1),
      descriptor: descriptor
    )
  }

  /// What can be said without the element.
  static func describe(
    _ tensor: InputCheck.Tensor,
    batch: Int,
    head: Int,
    token: Int
  ) -> AttentionError {
    AttentionError(
      .nonFiniteInput,
      "\(tensor.rawValue) at batch \(batch), head \(head), token \(token) has an element that is not "
        + "finite or too large"
    )
  }
}
