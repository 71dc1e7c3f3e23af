internal import CAttentionKernels
import IntFlashAttention
import Synchronization

/// The context of a device that every library of the process shares, or one that another library made.
@safe
final class CUDAContext: @unchecked Sendable {
  // Sendable: a context may be made current in any thread.
  let driver: CUDADriver
  let device: CUDADevice
  private let handle: CUcontext?

  private static let known = Mutex<[CUDADevice: CUDAContext]>([:])

  /// The context of this device; it is kept until the process ends.
  static func of(_ device: CUDADevice) throws(AttentionError) -> CUDAContext {
    let driver = try CUDADriver.shared.get()
    let result: Result<CUDAContext, AttentionError> = known.withLock { known in
      if let context = known[device] { return .success(context) }
      do throws(AttentionError) {
        let context = try CUDAContext(driver, device)
        known[device] = context
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
    guard device.foreignContext == 0 else {
      unsafe handle = unsafe CUcontext(bitPattern: device.foreignContext)
      return
    }
    var context: CUcontext?
    let retained = unsafe driver.functions.cuDevicePrimaryCtxRetain(
      &context,
      CUdevice(device.ordinal)
    )
    try driver.check("cuDevicePrimaryCtxRetain", retained)
    unsafe handle = unsafe context
  }

  /// Whether this context is the primary one of the device; makes none.
  static func isPrimary(
    _ context: UInt,
    of device: CUDADevice,
    _ driver: CUDADriver
  ) throws(AttentionError) -> Bool {
    var (flags, isActive): (UInt32, Int32) = (0, 0)
    let result = unsafe driver.functions.cuDevicePrimaryCtxGetState(
      CUdevice(device.ordinal),
      &flags,
      &isActive
    )
    try driver.check("cuDevicePrimaryCtxGetState", result)
    guard isActive != 0 else { return false }
    return unsafe UInt(bitPattern: try of(device).handle) == context
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
