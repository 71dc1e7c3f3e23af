internal import CAttentionKernels
public import IntFlashAttention

/// Work of a device that runs in order.
///
/// Calls put work into a stream and return; `synchronize` waits for it.
@safe
public final class CUDAStream: @unchecked Sendable {
  // Sendable: the driver takes work for a stream from any thread.
  let context: CUDAContext
  let handle: CUstream?
  private let isOwned: Bool

  /// A new stream.
  ///
  /// - Throws: `AttentionError` with code `.unavailable` or `.deviceFailure`.
  public init(on device: CUDADevice) throws(AttentionError) {
    context = try CUDAContext.of(device)
    let context = context
    let stream: CUstream? = unsafe try context.current { driver throws(AttentionError) in
      var stream: CUstream?
      // 1: independent of the default stream.
      try context.check("cuStreamCreate", unsafe driver.cuStreamCreate(&stream, 1))
      return unsafe stream
    }
    unsafe handle = unsafe stream
    isOwned = true
  }

  /// A stream that somebody else made, by its handle; 0 is the default stream.
  ///
  /// - Parameters:
  ///   - handle: the `CUstream` or `cudaStream_t` as a number; it must live as long as this object.
  ///   - device: its device, in the context that the stream belongs to; see ``CUDADevice/current()``.
  /// - Throws: `AttentionError` with code `.unavailable` or `.deviceFailure`.
  @unsafe
  public init(unsafeHandle handle: UInt, on device: CUDADevice) throws(AttentionError) {
    context = try CUDAContext.of(device)
    unsafe self.handle = unsafe CUstream(bitPattern: handle)
    isOwned = false
  }

  deinit {
    guard isOwned else { return }
    let handle = unsafe handle
    try? context.current { driver throws(AttentionError) in
      _ = unsafe driver.cuStreamDestroy(handle)
    }
  }

  /// Waits until all work of the stream is done.
  ///
  /// - Throws: `AttentionError` with code `.deviceFailure` where some of it failed.
  public func synchronize() throws(AttentionError) {
    let context = context
    let handle = unsafe handle
    try context.current { driver throws(AttentionError) in
      try context.check("cuStreamSynchronize", unsafe driver.cuStreamSynchronize(handle))
    }
  }
}

/// A point in the work of a stream, to measure time between two of them.
@safe
public final class CUDAEvent: @unchecked Sendable {
  // Sendable: the driver takes calls about an event from any thread.
  private let context: CUDAContext
  private let handle: CUevent?

  /// A point after all work that the stream has now.
  ///
  /// - Throws: `AttentionError` with code `.deviceFailure`.
  public init(recordedOn stream: CUDAStream) throws(AttentionError) {
    let context = stream.context
    self.context = context
    let event: CUevent? = unsafe try context.current { driver throws(AttentionError) in
      var event: CUevent?
      try context.check("cuEventCreate", unsafe driver.cuEventCreate(&event, 0))
      try context.check("cuEventRecord", unsafe driver.cuEventRecord(event, stream.handle))
      return unsafe event
    }
    unsafe handle = unsafe event
  }

  deinit {
    let handle = unsafe handle
    try? context.current { driver throws(AttentionError) in
      _ = unsafe driver.cuEventDestroy(handle)
    }
  }

  /// Seconds from an earlier event to this one; waits for this one.
  ///
  /// - Throws: `AttentionError` with code `.deviceFailure`.
  public func seconds(since earlier: CUDAEvent) throws(AttentionError) -> Double {
    let (context, begin, end) = unsafe (context, earlier.handle, handle)
    return try context.current { driver throws(AttentionError) in
      var milliseconds: Float = 0
      try context.check("cuEventSynchronize", unsafe driver.cuEventSynchronize(end))
      try context.check(
        "cuEventElapsedTime",
        unsafe driver.cuEventElapsedTime(&milliseconds, begin, end)
      )
      return Double(milliseconds) / 1000
    }
  }
}
