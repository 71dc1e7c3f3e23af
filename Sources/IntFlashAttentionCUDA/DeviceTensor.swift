public import IntFlashAttention

/// A tensor in the memory of a device.
///
/// Data can stay on the GPU from call to call. Copies are named, so that their cost shows.
public struct DeviceTensor: ~Copyable, Sendable {
  /// Memory of its own; nil where it is somebody else's.
  private let memory: DeviceMemory?
  let place: UInt64
  /// How elements are stored.
  public let elementType: ElementType
  /// Sizes, outermost first.
  public let shape: [Int]
  /// Elements from one index to the next, per dimension.
  public let strides: [Int]

  /// A tensor with any contents, row-major, aligned to 256 bytes.
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
    let memory = try DeviceMemory(byteCount: bytes, on: CUDAContext.of(device))
    self.memory = memory
    place = memory.address
    self.elementType = elementType
    self.shape = shape
    strides = TensorGeometry.contiguousStrides(shape, elementType)
  }

  /// A tensor that another library has on a device.
  ///
  /// - Parameters:
  ///   - address: the first element, as a number; a multiple of the element's size. The memory must
  ///     live until the streams have come past every call with the tensor.
  ///   - elementType: float32, float16 or bfloat16.
  ///   - shape: sizes, outermost first.
  ///   - strides: elements from one index to the next, per dimension, not negative, 1 in the last;
  ///     nil is row-major.
  /// - Throws: `AttentionError` with code `.invalidArgument` or `.unsupportedElementType`.
  @unsafe
  public init(
    unsafeAddress address: UInt,
    _ elementType: ElementType,
    shape: [Int],
    strides: [Int]? = nil
  ) throws(AttentionError) {
    _ = try TensorGeometry.storageCount(shape, elementType)
    guard elementType.isFloatingPointOperand else {
      throw AttentionError(
        .unsupportedElementType,
        "a tensor of another library is \(elementType.rawValue); it must be float32, float16 or "
          + "bfloat16"
      )
    }
    let size = elementType.bitWidth / 8
    guard address.isMultiple(of: UInt(size)), address <= Int.max, address != 0 || shape.contains(0)
    else {
      throw AttentionError(
        .invalidArgument,
        "address \(address) is not one of \(elementType.rawValue) elements"
      )
    }
    let strides = strides ?? TensorGeometry.contiguousStrides(shape, elementType)
    guard strides.count == shape.count, strides.allSatisfy({ $0 >= 0 }),
      (strides.last ?? 1) == 1 || (shape.last ?? 1) <= 1
    else {
      throw AttentionError(
        .invalidArgument,
        "strides \(strides) do not fit shape \(shape): one for each size, none negative, 1 in the last"
      )
    }
    let last = try TensorGeometry.reach(shape: shape, strides: strides, offset: 0)?.upperBound ?? 0
    guard last < (Int.max - Int(bitPattern: address)) / size else {
      throw AttentionError(
        .invalidArgument,
        "shape \(shape) with strides \(strides) at address \(address) reaches beyond the memory of a GPU"
      )
    }
    memory = nil
    place = UInt64(address)
    self.elementType = elementType
    self.shape = shape
    self.strides = strides
  }

  /// The address on the device, for other libraries.
  public var address: UInt { UInt(place) }

  /// Bytes of all elements.
  public var byteCount: Int { shape.reduce(elementType.bitWidth, *) / 8 }

  private var isRowMajor: Bool {
    strides == TensorGeometry.contiguousStrides(shape, elementType)
  }

  /// Replaces the contents by those of a tensor on the host; returns when that is done.
  ///
  /// - Throws: `AttentionError` with code `.shapeMismatch` or `.unsupportedElementType` where the two
  ///   differ, `.invalidArgument` where the device's is not row-major, `.deviceFailure`.
  public func copy(from tensor: borrowing Tensor, on stream: CUDAStream) throws(AttentionError) {
    try requireSame(tensor.elementType, tensor.shape)
    unsafe try stream.upload(tensor.storage, to: place, byteCount: byteCount)
    try stream.synchronize()
  }

  /// Replaces the contents of a tensor on the host; returns when that is done.
  ///
  /// - Throws: as ``copy(from:on:)``.
  public func copy(to tensor: inout Tensor, on stream: CUDAStream) throws(AttentionError) {
    try requireSame(tensor.elementType, tensor.shape)
    unsafe try stream.download(place, to: tensor.storage, byteCount: byteCount)
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
    guard isRowMajor else {
      throw AttentionError(
        .invalidArgument,
        "a tensor with strides \(strides) is not row-major; only those are copied"
      )
    }
  }
}
