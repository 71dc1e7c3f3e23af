internal import CAttentionKernels
public import IntFlashAttention
import Synchronization

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

  /// What kernels are compiled for: code for exactly this device.
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

  private init(_ ordinal: Int32, _ driver: CUDADriver) throws(AttentionError) {
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
    name = String(decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
    memoryByteCount = bytes
    // Numbers of CUdevice_attribute.
    multiprocessorCount = try attribute(16)
    major = try attribute(75)
    minor = try attribute(76)
  }
}

/// The context of a device that every library of the process shares, PyTorch among them.
@safe
final class CUDAContext: @unchecked Sendable {
  // Sendable: a context may be made current in any thread.
  let driver: CUDADriver
  let device: CUDADevice
  private let handle: CUcontext?

  private static let known = Mutex<[Int: CUDAContext]>([:])

  /// The context of this device; it is kept until the process ends.
  static func of(_ device: CUDADevice) throws(AttentionError) -> CUDAContext {
    let driver = try CUDADriver.shared.get()
    let result: Result<CUDAContext, AttentionError> = known.withLock { known in
      if let context = known[device.ordinal] { return .success(context) }
      do throws(AttentionError) {
        let context = try CUDAContext(driver, device)
        known[device.ordinal] = context
        return .success(context)
      } catch {
        return .failure(error)
      }
    }
    return try result.get()
  }

  private init(_ driver: CUDADriver, _ device: CUDADevice) throws(AttentionError) {
    self.driver = driver
    self.device = device
    var context: CUcontext?
    let retained = unsafe driver.functions.cuDevicePrimaryCtxRetain(
      &context,
      CUdevice(device.ordinal)
    )
    try driver.check("cuDevicePrimaryCtxRetain", retained)
    unsafe handle = unsafe context
  }

  /// Runs `body` with this context current, and leaves the caller's own as it was.
  func current<Result: ~Copyable>(
    _ body: (borrowing intfa_cuda_driver) throws(AttentionError) -> Result
  ) throws(AttentionError) -> Result {
    try driver.check("cuCtxPushCurrent", unsafe driver.functions.cuCtxPushCurrent(handle))
    defer {
      var previous: CUcontext?
      _ = unsafe driver.functions.cuCtxPopCurrent(&previous)
    }
    return try body(driver.functions)
  }

  func check(_ operation: String, _ result: CUresult) throws(AttentionError) {
    try driver.check(operation, result)
  }
}
