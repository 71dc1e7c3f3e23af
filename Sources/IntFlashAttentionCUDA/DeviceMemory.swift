internal import CAttentionKernels
import IntFlashAttention

/// A piece of device memory that ends with its owner.
@safe
final class DeviceMemory: @unchecked Sendable {
  // Sendable: an address is a number; who may use it when is the business of the streams.
  let context: CUDAContext
  let address: UInt64
  let byteCount: Int

  /// Memory of at least one byte, with any contents.
  init(byteCount: Int, on context: CUDAContext) throws(AttentionError) {
    self.context = context
    self.byteCount = max(byteCount, 1)
    let size = self.byteCount
    address = try context.current { driver throws(AttentionError) in
      var address: CUdeviceptr = 0
      try context.check(
        "cuMemAlloc of \(size) bytes",
        unsafe driver.cuMemAlloc(&address, size)
      )
      return address
    }
  }

  deinit {
    let address = address
    try? context.current { driver throws(AttentionError) in
      _ = driver.cuMemFree(address)
    }
  }

  /// Fills it with zeros, in the order of the stream.
  func clear(on stream: CUDAStream) throws(AttentionError) {
    try stream.fill(address, 0, byteCount: byteCount)
  }
}

extension CUDAContext {
  /// The number of the GPU that has this address in its memory; nil where the driver knows of none.
  func ordinal(ofMemoryAt address: UInt64) throws(AttentionError) -> Int? {
    try current { driver throws(AttentionError) in
      var ordinal: Int32 = 0
      // 9: the number of the device.
      return unsafe driver.cuPointerGetAttribute(&ordinal, 9, address) == 0 ? Int(ordinal) : nil
    }
  }
}

extension CUDAStream {
  /// Its handle as a number.
  var number: UInt { unsafe UInt(bitPattern: handle) }

  /// Fills bytes on the device.
  func fill(_ address: UInt64, _ byte: UInt8, byteCount: Int) throws(AttentionError) {
    guard byteCount > 0 else { return }
    unsafe try enqueue("cuMemsetD8Async") { driver, stream in
      unsafe driver.cuMemsetD8Async(address, byte, byteCount, stream)
    }
  }

  /// Copies to the device; the source must stay as it is until the stream has been synchronised.
  func upload(
    _ source: UnsafeRawPointer,
    to address: UInt64,
    byteCount: Int
  ) throws(AttentionError) {
    guard byteCount > 0 else { return }
    unsafe try enqueue("cuMemcpyHtoDAsync") { driver, stream in
      unsafe driver.cuMemcpyHtoDAsync(address, source, byteCount, stream)
    }
  }

  /// Copies from the device; the target has it when the stream has been synchronised.
  func download(
    _ address: UInt64,
    to target: UnsafeMutableRawPointer,
    byteCount: Int
  ) throws(AttentionError) {
    guard byteCount > 0 else { return }
    unsafe try enqueue("cuMemcpyDtoHAsync") { driver, stream in
      unsafe driver.cuMemcpyDtoHAsync(target, address, byteCount, stream)
    }
  }

  private func enqueue(
    _ operation: String,
    _ call: (borrowing intfa_cuda_driver, CUstream?) -> CUresult
  ) throws(AttentionError) {
    let (context, handle) = unsafe (context, handle)
    try context.current { driver throws(AttentionError) in
      unsafe try context.check(operation, call(driver, handle))
    }
  }
}
