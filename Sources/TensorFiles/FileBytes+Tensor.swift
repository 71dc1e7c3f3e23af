import IntFlashAttention

extension FileBytes {
  /// A tensor of the elements that lie in `range`, copied.
  ///
  /// - Throws: `.tooLarge` where there is no memory for it.
  func tensor(
    _ type: ElementType,
    shape: [Int],
    in range: Range<Int>
  ) throws(TensorFileError) -> Tensor {
    let tensor = try zeros(type, shape: shape)
    precondition(tensor.byteCount == range.count, "the header was checked against the shape")
    let target = unsafe tensor.storage
    let source = bytes.extracting(range)
    unsafe source.withUnsafeBytes { source in
      guard let first = source.baseAddress else { return }
      unsafe target.copyMemory(from: first, byteCount: source.count)
    }
    return tensor
  }

  /// A float32 tensor of the binary64 numbers that lie in `range`, rounded to nearest.
  ///
  /// - Throws: `.tooLarge` where there is no memory for it.
  func tensorOfDoubles(shape: [Int], in range: Range<Int>) throws(TensorFileError) -> Tensor {
    var tensor = try zeros(.float32, shape: shape)
    precondition(2 * tensor.byteCount == range.count, "the header was checked against the shape")
    let source = unsafe bytes.extracting(range).bytes
    var target = tensor.mutableBytes
    for index in 0..<range.count / 8 {
      let bits = unsafe source.unsafeLoadUnaligned(fromByteOffset: 8 * index, as: UInt64.self)
      let value = Float(Double(bitPattern: UInt64(littleEndian: bits)))
      target.storeBytes(of: value, toByteOffset: 4 * index, as: Float.self)
    }
    return tensor
  }

  private func zeros(_ type: ElementType, shape: [Int]) throws(TensorFileError) -> Tensor {
    do {
      return try Tensor(type, shape: shape)
    } catch {
      throw TensorFileError(.tooLarge, path: path, error.message)
    }
  }
}

/// Bits that `shape` takes at `bitWidth` bits each, or nil where that is beyond `Int`.
///
/// Sizes of zero count as one in that test: with [0, 2⁶², 4] there is nothing to store, yet strides
/// would overflow.
func storedBitCount(_ shape: [Int], bitWidth: Int) -> Int? {
  var bits = bitWidth
  for size in shape where size != 0 {
    let (product, overflow) = bits.multipliedReportingOverflow(by: size)
    guard !overflow else { return nil }
    bits = product
  }
  return shape.contains(0) ? 0 : bits
}
