import IntFlashAttention

extension TensorView {
  /// The elements in row-major order without gaps, little-endian: a copy.
  ///
  /// A row of `.int4` begins at a byte, and the unused half byte that ends a row of odd length is
  /// zero, so equal tensors give equal bytes.
  func rowMajorBytes() -> [UInt8] {
    let columns = shape.last ?? 1
    let step = strides.last ?? 1
    var result: [UInt8] = []
    result.reserveCapacity(elementType.byteCount(elementCount: count) ?? 0)
    guard elementType != .int4 else {
      forEachRow { offset in
        for column in stride(from: 0, to: columns, by: 2) {
          let low = nibble(offset + column * step)
          let high = column + 1 < columns ? nibble(offset + (column + 1) * step) : 0
          result.append(low | high << 4)
        }
      }
      return result
    }
    let size = elementType.bitWidth / 8
    // Neighbours in memory go in one piece, others one by one.
    let (pieces, piece) = step == 1 ? (1, columns) : (columns, 1)
    forEachRow { offset in
      for index in 0..<pieces {
        let start = unsafe base + (offset + index * step) * size
        let source = unsafe UnsafeRawBufferPointer(start: start, count: piece * size)
        unsafe result.append(contentsOf: source)
      }
    }
    return result
  }

  /// The four bits of an `.int4` element.
  private func nibble(_ offset: Int) -> UInt8 {
    let byte = unsafe base.load(fromByteOffset: offset >> 1, as: UInt8.self)
    return offset & 1 == 0 ? byte & 0x0F : byte >> 4
  }
}
