public import IntFlashAttention

/// A tensor in the memory of a device: row-major, aligned to 256 bytes.
///
/// Data can stay on the GPU from call to call. Copies are named, so that their cost shows.
public struct DeviceTensor: ~Copyable, Sendable {
  let memory: DeviceMemory
  /// How elements are stored.
  public let elementType: ElementType
  /// Sizes, outermost first.
  public let shape: [Int]

  /// A tensor with any contents.
  ///
  /// - Throws: `AttentionError` with code `.invalidArgument` for a negative size or one that
  ///   overflows, `.outOfMemory`, `.unavailable` or `.deviceFailure`.
  public init(
    _ elementType: ElementType,
    shape: [Int],
    on device: CUDADevice
  ) throws(AttentionError) {
    let count = try TensorGeometry.storageCount(shape, elementType)
    guard let bytes = elementType.byteCount(elementCount: count) else {
      throw AttentionError(.invalidArgument, "shape \(shape): its size in bytes overflows")
    }
    memory = try DeviceMemory(byteCount: bytes, on: CUDAContext.of(device))
    self.elementType = elementType
    self.shape = shape
  }

  /// The address on the device, for other libraries.
  public var address: UInt { UInt(memory.address) }

  /// Bytes of all elements.
  public var byteCount: Int { shape.contains(0) ? 0 : memory.byteCount }

  /// Replaces the contents by those of a tensor on the host; returns when that is done.
  ///
  /// - Throws: `AttentionError` with code `.shapeMismatch` or `.unsupportedElementType` where the two
  ///   differ, `.deviceFailure`.
  public func copy(from tensor: borrowing Tensor, on stream: CUDAStream) throws(AttentionError) {
    try requireSame(tensor.elementType, tensor.shape)
    unsafe try stream.upload(tensor.storage, to: memory.address, byteCount: byteCount)
    try stream.synchronize()
  }

  /// Replaces the contents of a tensor on the host; returns when that is done.
  ///
  /// - Throws: as ``copy(from:on:)``.
  public func copy(to tensor: inout Tensor, on stream: CUDAStream) throws(AttentionError) {
    try requireSame(tensor.elementType, tensor.shape)
    unsafe try stream.download(memory.address, to: tensor.storage, byteCount: byteCount)
    try stream.synchronize()
  }

  private func requireSame(_ type: ElementType, _ other: [Int]) throws(AttentionError) {
    guard type == elementType else {
      throw AttentionError(
        .unsupportedElementType,
        "a tensor of \(type.rawValue) cannot be copied to or from one of \(elementType.rawValue)"
      )
    }
    guard other == shape else {
      throw AttentionError(
        .shapeMismatch,
        "shape \(other) of the host's tensor differs from shape \(shape) of the device's"
      )
    }
  }
}
