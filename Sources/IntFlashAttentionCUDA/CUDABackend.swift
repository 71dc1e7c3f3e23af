public import IntFlashAttention

/// Attention on a GPU: tiled, on tensor cores, memory linear in the number of tokens.
///
/// Driver and run-time compiler are found when a kernel is made; nothing of CUDA is needed to build or
/// to start a program. Kernels are compiled for the device at hand and kept on disk.
public struct CUDABackend: AttentionBackend {
  /// The GPU, by its number.
  public let ordinal: Int
  private let chosen: CUDADevice?
  private let cache: KernelCache

  /// A backend on this GPU; whether it exists is checked when a kernel is made.
  public init(device ordinal: Int = 0) {
    self.init(device: ordinal, cache: KernelCache())
  }

  /// A backend on this GPU, in the context that the device stands for; see ``CUDADevice/current()``.
  public init(on device: CUDADevice) {
    ordinal = device.ordinal
    chosen = device
    cache = KernelCache()
  }

  package init(device ordinal: Int, cache: KernelCache) {
    self.ordinal = ordinal
    self.cache = cache
    chosen = nil
  }

  /// `cuda`.
  public var name: String { "cuda" }

  /// Where compiled kernels are kept: `INTFA_CACHE_DIR`, else the system's place for caches.
  public static var cacheDirectory: String { KernelCache.defaultDirectory }

  /// A kernel for `int8`, `int8Paper`, `bfloat16` and `float16`.
  ///
  /// - Throws: as ``makeCUDAKernel(for:)``.
  public func makeKernel(
    for descriptor: AttentionDescriptor
  ) throws(AttentionError) -> any AttentionKernel {
    try makeCUDAKernel(for: descriptor)
  }

  /// A kernel that also takes tensors in device memory.
  ///
  /// - Throws: `AttentionError` with code `.unavailable` where driver, GPU or compiler are missing,
  ///   `.unsupported` for other recipes, a soft cap, a prefix, blocks, more than 2²⁸ tokens or 2⁴⁰ of
  ///   all heads, or a GPU older than compute capability 8.0, `.deviceFailure` where kernels do not compile or load.
  public func makeCUDAKernel(
    for descriptor: AttentionDescriptor
  ) throws(AttentionError) -> CUDAKernel {
    guard let method = CUDAMethod(descriptor.recipe) else {
      throw AttentionError(
        .unsupported,
        "the CUDA backend has no kernel for this recipe; it computes int8, int8Paper, bfloat16 and "
          + "float16"
      )
    }
    try Self.requireSupported(descriptor.options)
    let shape = descriptor.shape
    for (name, length) in [
      ("queryLength", shape.queryLength), ("keyValueLength", shape.keyValueLength),
    ] where length > Self.largestLength {
      throw AttentionError(
        .unsupported,
        "\(name) is \(length); the CUDA backend takes at most \(Self.largestLength)"
      )
    }
    let heads = shape.batchCount * shape.queryHeadCount
    guard heads <= Int32.max,
      heads * max(shape.queryLength, shape.keyValueLength) <= Self.largestTokenCount
    else {
      throw AttentionError(
        .unsupported,
        "\(shape.batchCount) batches of \(shape.queryHeadCount) heads with \(shape.queryLength) "
          + "queries and \(shape.keyValueLength) keys are more than a GPU can have in its memory"
      )
    }
    let device = try self.device()
    return try CUDAKernel(descriptor: descriptor, method: method, device: device, cache: cache)
  }

  /// Positions and their differences are 32-bit numbers in the kernels.
  package static let largestLength = 1 << 28
  /// Tokens of all heads: so many that sizes in bytes stay far from overflowing.
  private static let largestTokenCount = 1 << 40

  /// The GPU of this backend.
  ///
  /// - Throws: `AttentionError` with code `.unavailable` or `.unsupported`.
  public func device() throws(AttentionError) -> CUDADevice {
    let device = if let chosen { chosen } else { try deviceOfOrdinal() }
    try Self.requireSupported(device)
    return device
  }

  static func requireSupported(_ device: CUDADevice) throws(AttentionError) {
    guard device.major < 8 else { return }
    throw AttentionError(
      .unsupported,
      "\(device.name) has compute capability \(device.major).\(device.minor); the kernels need 8.0"
    )
  }

  static func requireSupported(_ options: AttentionOptions) throws(AttentionError) {
    if let softcap = options.softcap {
      throw AttentionError(.unsupported, "softcap is \(softcap); the CUDA backend has none")
    }
    if case .prefixCausal = options.mask {
      throw AttentionError(
        .unsupported,
        "mask is \(options.mask); the CUDA backend takes full, causal and sliding"
      )
    }
    guard options.blocks == nil else {
      throw AttentionError(.unsupported, "blocks are given; the CUDA backend does not take them")
    }
  }

  private func deviceOfOrdinal() throws(AttentionError) -> CUDADevice {
    let devices = try CUDADevice.all()
    guard devices.indices.contains(ordinal) else {
      throw AttentionError(
        .unavailable,
        "there is no CUDA device \(ordinal); the driver knows \(devices.count)"
      )
    }
    return devices[ordinal]
  }
}
