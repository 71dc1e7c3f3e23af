internal import CAttentionKernels
import IntFlashAttention

extension CUDAContext {
  typealias TensorMapWords = (
    UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64,
    UInt64, UInt64, UInt64, UInt64
  )

  /// The description of a matrix of bytes, for the copy engine: rows of `width` bytes without gaps,
  /// copied in boxes whose rows are 64 or 128 bytes, swizzled over that span.
  func tensorMap(
    _ address: UInt64,
    width: Int,
    height: Int,
    box: (width: Int, height: Int)
  ) throws(AttentionError) -> TensorMapWords {
    guard height <= Int(UInt32.max) else {
      throw AttentionError(
        .unsupported,
        "\(height) rows of all heads; the copy engine of the GPU takes at most \(UInt32.max)"
      )
    }
    let sizes = [UInt64(width), UInt64(height)]
    let strides = [UInt64(width)]
    let boxes = [UInt32(box.width), UInt32(box.height)]
    let steps: [UInt32] = [1, 1]
    let swizzle: Int32 = box.width == 128 ? 3 : 2
    // The driver wants its target aligned to 64 bytes.
    let target = UnsafeMutableRawPointer.allocate(byteCount: 128, alignment: 64)
    defer { unsafe target.deallocate() }
    let map = unsafe target.bindMemory(to: CUtensorMap.self, capacity: 1)
    let base = unsafe UnsafeMutableRawPointer(bitPattern: UInt(address))
    try current { driver throws(AttentionError) in
      guard unsafe driver.cuTensorMapEncodeTiled != nil else {
        throw AttentionError(
          .unavailable,
          "the CUDA driver lacks cuTensorMapEncodeTiled; sm_90 kernels need a driver of CUDA 12 or later"
        )
      }
      // Bytes; no interleaving; L2 in units of 256 bytes; zeros outside.
      let result = unsafe driver.cuTensorMapEncodeTiled(
        map,
        0,
        2,
        base,
        sizes,
        strides,
        boxes,
        steps,
        0,
        swizzle,
        3,
        0
      )
      try check("cuTensorMapEncodeTiled", result)
    }
    return unsafe map.pointee.words
  }
}
