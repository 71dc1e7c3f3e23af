internal import CAttentionKernels
public import IntFlashAttention

/// A GPU of this machine.
public struct CUDADevice: Hashable, Sendable {
  /// Its number, from 0.
  public let ordinal: Int
  /// The driver's name for it.
  public let name: String
  /// Compute capability, for instance 9.0.
  public let major: Int
  /// Second part of the compute capability.
  public let minor: Int
  /// Streaming multiprocessors.
  public let multiprocessorCount: Int
  /// Bytes of device memory.
  public let memoryByteCount: Int
  /// A context that somebody else made, as a number; 0 is the primary one.
  let foreignContext: UInt

  /// What kernels are compiled for where the compiler knows the device: code for exactly it.
  public var architecture: String {
    // The instructions of the sm_90 kernels exist in the "a" form of that architecture only.
    "sm_\(major)\(minor)" + (major == 9 ? "a" : "")
  }

  /// The GPUs of this machine.
  ///
  /// - Throws: `AttentionError` with code `.unavailable` where there is no driver or no GPU.
  public static func all() throws(AttentionError) -> [CUDADevice] {
    let driver = try CUDADriver.shared.get()
    var count: Int32 = 0
    try driver.check("cuDeviceGetCount", unsafe driver.functions.cuDeviceGetCount(&count))
    guard count > 0 else { throw AttentionError(.unavailable, "the CUDA driver knows no GPU") }
    var devices: [CUDADevice] = []
    for ordinal in 0..<count { devices.append(try CUDADevice(ordinal, driver)) }
    return devices
  }

  /// The device and the context that are current in the calling thread, as another library has set
  /// them: PyTorch, or whoever made the tensors and the stream of a call.
  ///
  /// A context that is not the primary one of its device must live as long as anything that was made
  /// for this device here.
  ///
  /// - Throws: `AttentionError` with code `.unavailable` where there is no driver, no GPU or no current
  ///   context.
  public static func current() throws(AttentionError) -> CUDADevice {
    let driver = try CUDADriver.shared.get()
    var context: CUcontext?
    try driver.check("cuCtxGetCurrent", unsafe driver.functions.cuCtxGetCurrent(&context))
    guard let context = unsafe context else {
      throw AttentionError(.unavailable, "no CUDA context is current in this thread")
    }
    var device: CUdevice = 0
    try driver.check("cuCtxGetDevice", unsafe driver.functions.cuCtxGetDevice(&device))
    let number = UInt(bitPattern: context)
    let plain = try CUDADevice(device, driver)
    let isPrimary = try CUDAContext.isPrimary(number, of: plain, driver)
    return isPrimary ? plain : try CUDADevice(device, driver, foreignContext: number)
  }

  private init(
    _ ordinal: Int32,
    _ driver: CUDADriver,
    foreignContext: UInt = 0
  ) throws(AttentionError) {
    var device: CUdevice = 0
    var text = [CChar](repeating: 0, count: 256)
    var bytes = 0
    try driver.check("cuDeviceGet", unsafe driver.functions.cuDeviceGet(&device, ordinal))
    let capacity = Int32(text.count)
    try driver.check(
      "cuDeviceGetName",
      unsafe driver.functions.cuDeviceGetName(&text, capacity, device)
    )
    try driver.check("cuDeviceTotalMem", unsafe driver.functions.cuDeviceTotalMem(&bytes, device))
    func attribute(_ number: Int32) throws(AttentionError) -> Int {
      var value: Int32 = 0
      try driver.check(
        "cuDeviceGetAttribute",
        unsafe driver.functions.cuDeviceGetAttribute(&value, number, device)
      )
      return Int(value)
    }
    self.ordinal = Int(ordinal)
    self.foreignContext = foreignContext
    name = String(decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
    memoryByteCount = bytes
    // Numbers of CUdevice_attribute.
    multiprocessorCount = try attribute(16)
    major = try attribute(75)
    minor = try attribute(76)
  }
}
